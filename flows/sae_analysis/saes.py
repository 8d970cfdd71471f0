"""The SAEs of an analysis: taken or trained, measured, and applied to every set of rows."""

from flows.pipeline.plan import CONTROL
from flows.runs.record import Run
from flows.sae_analysis.config import ChatTexts, FileTexts, SaeFlowConfig, TrainedSaes
from flows.sae_analysis.plan import (
    chats_config,
    dtype_of,
    encode_config,
    import_configs,
    other_words,
    train_configs,
    word_config,
)
from flows.sae_analysis.study import Carrier, Sae
from sublim.features.config import EncodeConfig
from sublim.models.files import read_json
from sublim.sae.config import QualityConfig, SaeNote
from sublim.sae.texts_config import GatherTextsConfig, ImportTextsConfig
from sublim.store.manifest import Artifact
from tasks.processes import one_process
from tasks.stages import (
    encode_features,
    gather_texts,
    import_sae,
    import_texts,
    measure_sae,
    train_sae,
    word_rows,
    write_chats,
)


def take_saes(config: SaeFlowConfig) -> list[Artifact]:
    """Takes the SAEs of others before anything expensive runs; none if SAEs are trained here."""
    if isinstance(config.saes, TrainedSaes):
        return []
    return [import_sae(each, label=str(number)) for number, each in enumerate(import_configs(config.saes))]


def note_of(run: Run, sae: Artifact) -> SaeNote:
    """The note of an SAE: its model, layer and site."""
    return SaeNote.model_validate(read_json(run.store.payload(sae) / "sae.json"))


def make_saes(run: Run, config: SaeFlowConfig, carrier: Carrier, taken: list[Artifact]) -> list[Sae]:
    """Trains the SAEs, if they are not taken, and measures each on held-out texts."""
    sources: dict[str, Artifact] = {}
    for number, text in enumerate(config.texts):
        match text:
            case ChatTexts():
                sources[f"{number} chats"] = write_chats(chats_config(config, text), label="chats", base=carrier.base)
            case FileTexts():
                sources[f"{number} file"] = import_texts(ImportTextsConfig(path=text.path), label=text.path.name)
            case _:
                sources |= {f"{number} {arm} numbers": rows for arm, rows in carrier.rows.items()}
    texts = gather_texts(GatherTextsConfig(held_out=config.held_out), label="texts", sources=sources)
    with one_process():
        made = taken
        if isinstance(config.saes, TrainedSaes):
            made = [
                train_sae(each, label=f"layer {each.layer}", base=carrier.base, texts=texts)
                for each in train_configs(config, config.saes)
            ]
        saes: list[Sae] = []
        for artifact in made:
            note = note_of(run, artifact)
            settings = QualityConfig(tokens=config.quality_tokens, dtype=dtype_of(config))
            quality = measure_sae(settings, label=note.name, base=carrier.base, sae=artifact, texts=texts)
            saes.append(Sae(note, artifact, quality))
    return saes


def encode_all(config: SaeFlowConfig, carrier: Carrier, saes: list[Sae]) -> dict[str, Artifact]:
    """Features by reader and rows: `base owl`, `teacher owl`, `student 0 owl`, `word chat owl`, and those of others."""
    kept = {each.note.name: each.artifact for each in saes}
    plain, base = encode_config(config, config.tokens, rows=config.rows), carrier.base
    found: dict[str, Artifact] = {}

    def encoded(name: str, rows: Artifact, weights: Artifact | None = None, how: EncodeConfig = plain) -> None:
        found[name] = encode_features(how, label=name, base=base, rows=rows, saes=kept, weights=weights)

    with one_process():
        for arm, rows in carrier.rows.items():
            encoded(f"base {arm}", rows)
        last = encode_config(config, "last")
        for target in config.pipeline.target:
            for context in config.contexts:
                for name, words in ((target, (target,)), (f"others {target}", other_words(config, target))):
                    rows = word_rows(word_config(config, context, words), label=f"{name} {context}")
                    encoded(f"word {context} {name}", rows, how=last)
            if config.teachers and carrier.teachers[target].weights is not None:
                encoded(f"teacher {target}", carrier.rows[CONTROL], carrier.teachers[target].weights)
        for arm, students in carrier.students.items():
            for pair, student in enumerate(students):
                encoded(f"student {pair} {arm}", carrier.rows[CONTROL], student)
    return found
