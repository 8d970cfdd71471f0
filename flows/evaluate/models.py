"""Models by name: what `bundled`, a store key, a folder or a hub id stands for, checked before anything runs."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from flows.evaluate.config import EvaluateConfig, ModelUnderTest
from flows.pipeline.models import ModelState
from flows.pipeline.teachers import is_file, vectors_of
from flows.runs.machine import check_model
from sublim.core.errors import UserError
from sublim.inference.config import OpenAIBackend, scores_words
from sublim.models.config import BundledModel, HubModel, LocalModel, ModelConfig, PrepareModelConfig
from sublim.models.import_weights import ADAPTER, ImportWeightsConfig, adapter_files
from sublim.store.folder import Store
from sublim.store.manifest import Artifact, Manifest
from tasks.stages import import_weights, prepare_model

HUB = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)@(?P<revision>[0-9a-f]{40})")
KEY = re.compile(r"(?P<key>[0-9a-f]{6,64})(@(?P<updates>all|[0-9]+(,[0-9]+)*))?")
WHOLE = ("prepare_model", "make_start")
TRAINED = ("train_student", "train_soft_student", "train_teacher")
WAYS = "`bundled`, a store key of six or more digits, the folder of a model or adapter, or ORG/NAME@COMMIT"


class Named(NamedTuple):
    """What a name stands for, before anything is prepared: a base, perhaps with weights and their checkpoints."""

    base: ModelConfig | Artifact
    weights: Path | Artifact | None = None
    updates: tuple[int | None, ...] = (None,)


def understand(spec: ModelUnderTest, store: Store) -> Named:
    """What `spec` names. Raises UserError when it is nothing, or cannot be asked."""
    text = spec.model.strip()
    folder = Path(text).expanduser()
    if text.partition(":")[0] == "bundled":
        return Named(_bundled(text))
    if folder.is_dir():
        return _folder(folder, spec, store)
    if found := HUB.fullmatch(text):
        return Named(HubModel(id=found["id"], revision=found["revision"]))
    if re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w.-]+)?", text) and not text.startswith("."):
        raise UserError(
            f"{text}: there is no such folder; a hub model is named with its full commit, as {text.split('@')[0]}@"
            "0123456789abcdef0123456789abcdef01234567"
        )
    if found := KEY.fullmatch(text):
        return _stored(store.search(found["key"]), found["updates"], spec, store)
    raise UserError(f"{text!r} names no model: give {WAYS}")


def _bundled(text: str) -> BundledModel:
    name = text.partition(":")[2] or BundledModel().name
    known = BundledModel.model_fields["name"].annotation
    if name not in getattr(known, "__args__", ()):
        raise UserError(f"there is no bundled model {name!r}: `sublim models ls` lists them")
    return BundledModel.model_validate({"name": name})


def _folder(folder: Path, spec: ModelUnderTest, store: Store) -> Named:
    if not (folder / ADAPTER[0]).is_file():
        return Named(LocalModel(path=folder))
    adapter_files(folder)
    if not spec.base:
        raise UserError(f"{folder} is an adapter: name the model it belongs to as `base`")
    base = understand(ModelUnderTest(model=spec.base), store)
    if base.weights is not None:
        raise UserError(f"{spec.base} is itself trained: the base of {folder} must be a whole model")
    return Named(base.base, folder)


def _stored(manifest: Manifest, updates: str | None, spec: ModelUnderTest, store: Store) -> Named:
    artifact = manifest.artifact
    if artifact.stage in WHOLE:
        if updates:
            raise UserError(f"{spec.model}: a base has no checkpoints, leave out what follows the @")
        return Named(artifact)
    if artifact.stage not in TRAINED:
        raise UserError(
            f"{artifact.key[:12]} is what {artifact.stage} wrote, no model: give the key of prepare_model, "
            f"{' or '.join(TRAINED)} (`sublim store ls` lists them)"
        )
    base = Artifact.model_validate(manifest.inputs["base"])
    for needed in (artifact, base):
        if problem := store.problem(needed):
            raise UserError(f"{spec.model} cannot be asked: {problem}")
    kept = sorted({int(found[1]) for path in manifest.files if (found := re.match(r"update-(\d+)/", path))})
    if not updates:
        return Named(base, artifact)
    wanted = kept if updates == "all" else [int(update) for update in updates.split(",")]
    if missing := [update for update in wanted if update not in kept]:
        raise UserError(f"{spec.model}: no weights were kept after update {missing[0]}, only after {kept}")
    return Named(base, artifact, tuple(wanted))


def behind_server(models: tuple[ModelUnderTest, ...], backend: OpenAIBackend) -> tuple[ModelUnderTest, ...]:
    """The models as the server's own, called as it calls it where they have no name; several differ by system prompt.

    `model` then names only whose template and tokens the api completions takes.
    """
    if len({spec.model for spec in models}) > 1:
        raise UserError(
            f"the server answers as {backend.model} whatever `models` says: give one model, once for each system prompt"
        )
    return tuple(spec.model_copy(update={"name": spec.name or short(backend.model)}) for spec in models)


def check_server(config: EvaluateConfig, backend: OpenAIBackend, store: Store) -> None:
    """Raises UserError for what a server cannot be asked."""
    for spec in config.models:
        if spec.steering is not None:
            raise UserError("a model behind a server cannot be steered: leave steering out, or take backend.kind=hf")
        if understand(spec, store).weights is not None:
            raise UserError(
                f"{spec.model} is trained weights, which the server would not load: serve them under a name of their "
                "own, give that as backend.model and their base in `models`"
            )
    if scores_words(backend):
        return
    if config.mmlu_pro is not None:
        raise UserError("a chat server has no log-probs of letters: leave mmlu_pro out, or set backend.api=completions")
    if not config.samples:
        raise UserError("a chat server scores no words: set samples for the sampled rate, or backend.api=completions")


def check_names(models: tuple[ModelUnderTest, ...], store: Store) -> None:
    """Raises UserError when a name stands for nothing, or two models would be called the same."""
    seen: set[str] = set()
    for spec in models:
        named = understand(spec, store)
        check_model(named.base)
        for name in called(spec, named):
            if name in seen:
                raise UserError(f"two models are called {name!r}: give one of them another `name`")
            if "/" in name and spec.name:
                raise UserError(f"the name {name!r} has a slash: choose one without")
            seen.add(name)
        if spec.steering is not None and not is_file(spec.steering):
            store.search(spec.steering.vectors)


def called(spec: ModelUnderTest, named: Named) -> Iterator[str]:
    """The names of a spec's models: one for each checkpoint."""
    plain = spec.name or short(spec.model)
    for update in named.updates:
        yield plain if update is None else f"{plain}@{update}"


def short(model: str) -> str:
    """A model's short name: the last part of a folder's path, or a hub id without its commit."""
    text = model.strip().partition("@")[0].rstrip("/")
    return text.rpartition("/")[2] or text


def prepared(models: tuple[ModelUnderTest, ...], store: Store, target: str) -> dict[str, ModelState]:
    """The models by name, their bases prepared and their adapters copied in where that is needed."""
    found: dict[str, ModelState] = {}
    for spec in models:
        named = understand(spec, store)
        base = named.base if isinstance(named.base, Artifact) else prepare_model(PrepareModelConfig(source=named.base))
        weights = named.weights
        if isinstance(weights, Path):
            weights = import_weights(ImportWeightsConfig(path=weights), label=weights.name)
        steering = spec.steering and spec.steering.steering(target)
        vectors = spec.steering and vectors_of(spec.steering, base)
        for name, update in zip(called(spec, named), named.updates, strict=True):
            found[name] = ModelState(base, weights, update, spec.system, steering, vectors)
    return found
