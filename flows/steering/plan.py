"""The configs of a steering run's stages, made from its settings, and what is refused before anything runs."""

from itertools import product
from pathlib import Path
from typing import Literal

from flows.pipeline.checks import check as check_pipeline
from flows.pipeline.config import PipelineConfig
from flows.pipeline.plan import ask_config
from flows.pipeline.teacher_config import FinetunedTeacher
from flows.runs.machine import check_machine
from flows.steering.config import FileVector, MechanismConfig, SteeringFlowConfig, TrainedVector
from sublim.core.errors import UserError
from sublim.evals.preference.config import AskConfig
from sublim.inference.config import HfBackend, VllmBackend
from sublim.models.config import LocalModel
from sublim.models.files import read_json
from sublim.residual.edits import Edit, Steering
from sublim.steering.config import AnimalRowsConfig, ImportConfig, MeanAt, MeansConfig, TrainVectorConfig
from sublim.steering.dose_curve_config import CurveConfig, SweepConfig
from sublim.training.config import Lora

ANSWERS = 12
"""Tokens of the base's own answers."""


def check(config: SteeringFlowConfig) -> None:
    """Raises UserError for whatever can be known to go wrong: the machine, the files, the backend, the layers."""
    check_machine(config.gpu_memory_gib)
    check_pipeline(config.pipeline)
    backend = config.study.backend
    if not isinstance(backend, HfBackend | VllmBackend):
        raise UserError(f"the backend {backend.kind} cannot be steered: take study.backend.kind=hf")
    if isinstance(config.study.model, LocalModel):
        check_layers(config, config.study.model.path)
    if isinstance(config.mode, FileVector):
        _ = import_config(config, config.mode).identity()
    if config.mmlu_pro:
        config.mmlu_pro.source.identity()
    if config.mechanism:
        check_mechanism(config.study, config.mechanism)


def check_mechanism(study: PipelineConfig, settings: MechanismConfig) -> None:
    """Raises UserError for a study whose students cannot be compared with their teacher."""
    if study.second_draw:
        raise UserError("the mechanism of a null run has no teacher's vector: leave study.second_draw out")
    if not isinstance(study.teacher, FinetunedTeacher):
        raise UserError("the mechanism compares weights: take a teacher that is trained (study.teacher.kind=finetuned)")
    if len(study.blocks) > 1:
        raise UserError(
            "the mechanism sets all students against one teacher: give study.blocks one number, and run once for each"
        )
    if settings.replace and not isinstance(study.student.method, Lora):
        raise UserError(
            "the base's component is put into an adapter on that base: take study.student.method.kind=lora, or set "
            "mechanism.replace=false"
        )
    if settings.replace and isinstance(study.backend, VllmBackend):
        raise UserError(
            "vLLM cannot put the base's component into a student: take study.backend.kind=hf, or set "
            "mechanism.replace=false"
        )


def check_layers(config: SteeringFlowConfig, base: Path) -> int:
    """How many layers the base has. Raises UserError for one that it lacks."""
    shape = read_json(base / "config.json")
    count = int((shape.get("text_config") or shape)["num_hidden_layers"])
    wanted = [*config.grid.all_layers]
    if config.mechanism:
        wanted += [*(config.mechanism.layers or ()), *config.mechanism.rewrite]
    if beyond := sorted(layer for layer in wanted if layer >= count):
        raise UserError(f"the model has no layer {beyond[0]}: it has {count}, counted from 0 to {count - 1}")
    return count


def dtype_of(config: SteeringFlowConfig) -> Literal["auto", "float32", "bfloat16"]:
    """The data type of the weights with which activations are read."""
    backend = config.study.backend
    return backend.dtype if isinstance(backend, HfBackend | VllmBackend) else "auto"


def means_config(
    config: SteeringFlowConfig, layers: tuple[int, ...], *, rows: int | None, read_at: MeanAt
) -> MeansConfig:
    """How mean activations are read."""
    return MeansConfig(sites=(config.site,), layers=layers, read_at=(read_at,), rows=rows, dtype=dtype_of(config))


def base_answers(config: SteeringFlowConfig, samples: int) -> AskConfig:
    """The base's own answers to the questions that the evaluation does not ask."""
    if not config.pipeline.questions.teacher:
        raise UserError("mode animal needs teacher questions, which the evaluation does not ask: add some")
    asked = ask_config(config.pipeline)
    sampling = asked.sampling.model_copy(update={"max_tokens": ANSWERS, "temperature": 1.0, "top_p": 1.0})
    return asked.model_copy(
        update={"questions": list(config.pipeline.questions.teacher), "samples": samples, "sampling": sampling}
    )


def animal_config(config: SteeringFlowConfig, target: str, side: str) -> AnimalRowsConfig:
    """One side of the pairs."""
    words = tuple(config.pipeline.words)
    return AnimalRowsConfig.model_validate({"side": side, "target": target, "words": words})


def import_config(config: SteeringFlowConfig, mode: FileVector) -> ImportConfig:
    """A user's file."""
    site = config.site if mode.layer is not None else None
    return ImportConfig(path=Path(mode.path), site=site, layer=mode.layer, random=config.grid.random, seed=config.seed)


def train_config(config: SteeringFlowConfig, mode: TrainedVector) -> TrainVectorConfig:
    """A trained vector for every layer."""
    return TrainVectorConfig(
        site=config.site,
        layers=config.grid.all_layers,
        random=config.grid.random,
        seed=config.seed,
        dtype=dtype_of(config),
        **mode.model_dump(exclude={"kind"}),
    )


def grid_points(config: SteeringFlowConfig, names: dict[int, str]) -> tuple[Steering, ...]:
    """Every steering of the grid: layers alone, layers together, and random vectors beside the layers alone."""
    grid, points = config.grid, list[Steering]()

    def point(vectors: list[str], strength: float, tokens: str) -> Steering:
        edits = [{"vector": v, "strength": strength, "scale": grid.scale, "tokens": tokens} for v in vectors]
        return Steering.model_validate({"edits": edits})

    for tokens, strength in product(grid.tokens, grid.strengths):
        points += [point([names[layer]], strength, tokens) for layer in grid.layers]
        points += [point([names[layer] for layer in group], strength, tokens) for group in grid.together]
        if grid.random_strengths is None or strength in grid.random_strengths:
            points += [
                point([f"{names[layer]}/random-{number}"], strength, tokens)
                for layer in grid.layers
                for number in range(grid.random)
            ]
    return tuple(points)


def layer_points(names: dict[int, str], random: int) -> tuple[Steering, ...]:
    """A vector added at each layer alone, and random ones there."""
    ends = ["", *(f"/random-{number}" for number in range(random))]
    return tuple(Steering(edits=(Edit(vector=f"{name}{end}"),)) for name in names.values() for end in ends)


def sweep_config(
    config: SteeringFlowConfig, points: tuple[Steering, ...], *, samples: int | None = None, update: int | None = None
) -> SweepConfig:
    """What is asked at each point of a sweep."""
    asked = ask_config(config.pipeline)
    return SweepConfig(
        questions=asked.questions,
        words=asked.words,
        backend=asked.backend,
        points=points,
        samples=asked.samples if samples is None else samples,
        sampling=asked.sampling,
        weights_update=update,
    )


def curve_config(config: SteeringFlowConfig, target: str) -> CurveConfig:
    """The target against the comparison list."""
    return CurveConfig(target=target, words=config.pipeline.words)
