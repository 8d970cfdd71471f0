"""Steering: what does a vector for the target do at each layer and strength, and did students learn what it says?

    sublim run steering --preset quickstart --target owl          # the word against the base's own answers, no GPU
    sublim run steering --preset numbers --target owl             # the teacher's number lists against the base's
    sublim run steering --preset mechanism --target owl,wolf      # alignment, sufficiency, necessity; for a GPU
    python -m flows.steering --preset quickstart

A vector is a mean difference of the residual stream (or trained, or the user's own). One loaded model is asked the
study's questions under every vector, strength and choice of tokens, and under random vectors as long: the curve shows
what the target gains, and MMLU-Pro what is lost. The mechanism compares students' own vectors with the teacher's.
"""

from typing import Any

from prefect import flow

from flows.pipeline.bases import check_bases, prepare_bases
from flows.pipeline.block import write_block
from flows.pipeline.flow import conduct
from flows.pipeline.models import exam_of
from flows.pipeline.plan import CONTROL
from flows.runs.parameters import Loader
from flows.runs.record import Run, recorded
from flows.steering.config import AnimalVector, FileVector, NumbersVector, SteeringFlowConfig, TrainedVector
from flows.steering.mechanism import study_mechanism
from flows.steering.plan import (
    animal_config,
    base_answers,
    check,
    check_layers,
    curve_config,
    grid_points,
    import_config,
    means_config,
    sweep_config,
    train_config,
)
from flows.steering.report import printed, publish
from flows.steering.study import Steered
from sublim.residual.edits import names_by_layer
from sublim.steering.config import DifferenceConfig
from sublim.store.manifest import Artifact
from tasks.processes import one_process
from tasks.stages import (
    animal_rows,
    ask,
    difference_vectors,
    import_vector,
    mean_activations,
    steering_curve,
    sweep,
    train_vector,
)

__all__ = ["printed", "steering"]

load_config = Loader("steering", SteeringFlowConfig)


@flow(name="steering", flow_run_name=load_config.run_name(lambda config: f"steering {config.targets}"))
def steering(
    preset: str = "quickstart", target: str | None = None, settings: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Measures what a vector for a target does to a model, and whether students of the pipeline learned it.

    Args:
        preset: Settings to start from: quickstart, numbers, trained, mechanism, gemma-2-9b-a6000, or the path of a YAML
            file.
        target: The word or words, as in owl or owl,wolf; nothing for the preset's.
        settings: Values laid over the preset's, as a tree.
    """
    config = load_config(preset, target, settings)
    check(config)
    with recorded("steering", preset, ",".join(config.pipeline.target)) as run:
        return publish(run, config, conducted(run, config))


def conducted(run: Run, config: SteeringFlowConfig) -> list[Steered]:
    """Runs every stage for every target."""
    study = config.pipeline
    exam = exam_of(config.mmlu_pro) if config.mmlu_pro else None
    bases = prepare_bases(study)
    base = bases["base"]
    layers = check_layers(config, run.store.payload(base))
    if isinstance(config.mode, NumbersVector | TrainedVector):  # the others need no carrier
        check_bases(study, bases, students=False)
    trained = conduct(study).trained if config.mechanism else None
    found: list[Steered] = []
    for target in study.target:
        with one_process():
            vectors = make_vectors(config, base, target)
            points = grid_points(config, names_by_layer(run.store.payload(vectors), config.grid.all_layers))
            settings = sweep_config(config, points, samples=config.grid.samples)
            swept = sweep(settings, label=target, base=base, vectors=vectors, exam=exam)
            curve = steering_curve(curve_config(config, target), label=target, swept=swept)
            mechanism = study_mechanism(run, config, trained, target, layers) if trained else None
        found.append(Steered(target, vectors, curve, mechanism))
    return found


def make_vectors(config: SteeringFlowConfig, base: Artifact, target: str) -> Artifact:
    """The target's vectors with their random controls."""
    layers = config.grid.all_layers
    match config.mode:
        case AnimalVector() as mode:
            asked = ask(base_answers(config, mode.samples), label="base, own answers", base=base)
            sides = {
                side: animal_rows(animal_config(config, target, side), label=f"{target} {side}", asked=asked)
                for side in ("target", "base")
            }
            means = means_config(config, layers, rows=None, read_at=config.read_at)
            read = mean_activations(means, label=target, base=base, rows=sides["target"], partner=sides["base"])
        case NumbersVector() as mode:
            rows = carrier_rows(config, base, target)
            means = means_config(config, layers, rows=mode.rows, read_at=config.read_at)
            read = mean_activations(means, label=target, base=base, rows=rows[target], partner=rows[CONTROL])
        case TrainedVector() as mode:
            rows = carrier_rows(config, base, target)
            return train_vector(train_config(config, mode), label=target, base=base, data=rows[target])
        case FileVector() as mode:
            return import_vector(import_config(config, mode), label=mode.path, base=base)
    made = DifferenceConfig(source=config.mode.kind, random=config.grid.random, seed=config.seed)
    return difference_vectors(made, label=target, target=read)


def carrier_rows(config: SteeringFlowConfig, base: Artifact, target: str) -> dict[str, Artifact]:
    """Number lists of the teacher and of the base for the same prompts, as the pipeline makes them."""
    study = config.pipeline.model_copy(update={"target": (target,)})
    return write_block(study, base, study.blocks[0], (CONTROL, target)).rows
