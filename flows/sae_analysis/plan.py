"""The configs of an SAE analysis's stages, and what is refused before anything runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from flows.pipeline.checks import check as check_pipeline
from flows.runs.machine import check_machine
from flows.sae_analysis.config import ChatTexts, FileTexts, FolderSaes, PretrainedSaes, SaeFlowConfig, TrainedSaes
from flows.sae_analysis.labels import given
from sublim.activations.config import ActivationsConfig
from sublim.core.errors import UserError
from sublim.features.config import EncodeConfig, FeatureAt, WordRowsConfig, bundled_sentences
from sublim.features.labels.config import LabelsConfig
from sublim.inference.config import HfBackend, SamplingParams, VllmBackend
from sublim.models.files import read_json
from sublim.probes.config import ProbesConfig
from sublim.sae.config import FolderSae, ImportSaeConfig, PretrainedSae, SaeNote, TrainSaeConfig
from sublim.sae.texts_config import ImportTextsConfig, WriteChatsConfig, bundled_topics
from sublim.steering.config import MeansConfig
from sublim.store.opening import open_store


def check(config: SaeFlowConfig) -> None:
    """Raises UserError for every mistake that can be found before the run: in the machine, the files or the backend."""
    check_machine(config.gpu_memory_gib)
    check_pipeline(config.pipeline)
    if config.study.second_draw:
        raise UserError("a null run has no teacher to look into: leave study.second_draw out")
    if not isinstance(config.study.backend, HfBackend | VllmBackend):
        raise UserError(f"the backend {config.study.backend.kind} shows no stream to read: take study.backend.kind=hf")
    if config.neuronpedia is not None and isinstance(config.saes, TrainedSaes):
        raise UserError("Neuronpedia has no labels of SAEs that are trained here: leave neuronpedia out")
    if config.annotator is not None and config.neuronpedia is None:
        raise UserError("the annotator sorts Neuronpedia's labels: set neuronpedia too, or leave annotator out")
    for text in config.texts:
        if isinstance(text, FileTexts):
            _ = ImportTextsConfig(path=text.path).identity()
    if isinstance(config.saes, TrainedSaes) and (strange := sorted({*config.labels} - {*config.saes.layers})):
        raise UserError(f"labels are given for layer {strange[0]}, of which there is no SAE: see saes.layers")
    if config.labels:
        store = open_store()
        for layer, where in config.labels.items():
            _ = given(store, where, layer)
    if isinstance(config.saes, FolderSaes):
        for each in import_configs(config.saes):
            _ = each.source.identity()


def check_layers(config: SaeFlowConfig, notes: Sequence[SaeNote], base: Path) -> None:
    """Raises UserError, before the study is run, for a layer that the base lacks or an SAE of another width."""
    shape = read_json(base / "config.json")
    shape = shape.get("text_config") or shape
    count, width = int(shape["num_hidden_layers"]), int(shape["hidden_size"])
    trained = config.saes.layers if isinstance(config.saes, TrainedSaes) else ()
    probed = config.probe_layers if config.probes and config.probe_layers else ()
    if beyond := [layer for layer in (*trained, *probed, *(note.layer for note in notes)) if not 0 <= layer < count]:
        raise UserError(f"the model has no layer {beyond[0]}: it has {count}, counted from 0 to {count - 1}")
    if other := [note for note in notes if note.d_in != width]:
        raise UserError(
            f"the SAE ({other[0].source}) is for a stream {other[0].d_in} wide ({other[0].model}), the model's is "
            f"{width} wide: take one for this model"
        )


def dtype_of(config: SaeFlowConfig) -> Literal["auto", "float32", "bfloat16"]:
    """The dtype of the weights with which activations are read."""
    backend = config.study.backend
    return backend.dtype if isinstance(backend, HfBackend | VllmBackend) else "auto"


def chats_config(config: SaeFlowConfig, texts: ChatTexts) -> WriteChatsConfig:
    """How the base's own chats are sampled."""
    return WriteChatsConfig(
        topics=bundled_topics(),
        chats=texts.chats,
        backend=config.study.backend,
        sampling=SamplingParams(max_tokens=texts.max_tokens, seed=texts.seed),
    )


def train_configs(config: SaeFlowConfig, saes: TrainedSaes) -> list[TrainSaeConfig]:
    """How the SAE of each layer is trained."""
    shared = saes.model_dump(exclude={"kind", "layers"})
    return [
        TrainSaeConfig.model_validate({**shared, "layer": layer, "dtype": dtype_of(config)})
        for layer in sorted(set(saes.layers))
    ]


def import_configs(saes: PretrainedSaes | FolderSaes) -> list[ImportSaeConfig]:
    """Which published or local SAE is taken for each layer."""
    if isinstance(saes, PretrainedSaes):
        sources = [PretrainedSae(release=saes.release, id=id, other_model=saes.other_model) for id in saes.ids]
    else:
        sources = [FolderSae(path=path, other_model=saes.other_model) for path in saes.paths]
    return [ImportSaeConfig(source=source) for source in sources]


def encode_config(config: SaeFlowConfig, tokens: FeatureAt, *, rows: int | None = None) -> EncodeConfig:
    """How rows are encoded."""
    return EncodeConfig(tokens=tokens, rows=rows, top=config.top, dtype=dtype_of(config))


def word_config(config: SaeFlowConfig, context: str, words: tuple[str, ...]) -> WordRowsConfig:
    """How the rows with single words are made. Chats use questions that the evaluation does not ask."""
    frames = bundled_sentences() if context == "plain" else config.pipeline.questions.teacher
    return WordRowsConfig.model_validate({"words": words, "context": context, "frames": frames})


def other_words(config: SaeFlowConfig, target: str) -> tuple[str, ...]:
    """The words that a target's word is compared with: the list without the run's targets."""
    targets = {word.casefold() for word in (*config.pipeline.target, target)}
    return tuple(word for word in config.pipeline.words if word.casefold() not in targets)


def labels_config(config: SaeFlowConfig, note: SaeNote) -> LabelsConfig | None:
    """Where the labels of an SAE's features are; None if it does not say so or none are wanted."""
    if config.neuronpedia is None or note.neuronpedia is None:
        return None
    model, _, source = note.neuronpedia.partition("/")
    return LabelsConfig.model_validate({**config.neuronpedia.model_dump(), "model": model, "source": source})


def probe_reading(config: SaeFlowConfig, probes: ProbesConfig, layers: tuple[int, ...]) -> ActivationsConfig:
    """Which activations the probes are fitted on."""
    return ActivationsConfig(sites=(probes.site,), layers=layers, read_at=(probes.read_at,), dtype=dtype_of(config))


def means_config(config: SaeFlowConfig, note: SaeNote) -> MeansConfig:
    """The means whose difference is the steering vector at an SAE's place."""
    return MeansConfig(sites=(note.site,), layers=(note.layer,), rows=config.rows, dtype=dtype_of(config))
