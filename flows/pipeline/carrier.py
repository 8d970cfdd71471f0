"""The carriers of a pipeline run: each writer's lists are examined beside the stage that wrote them."""

from collections.abc import Callable, Mapping
from functools import partial

from flows.pipeline.config import CarrierCheck, PipelineConfig
from flows.pipeline.models import ModelState, write_numbers
from flows.pipeline.plan import CONTROL, SECOND_DRAW, generate_config
from sublim.carriers.numbers import NumberRules
from sublim.diagnostics.carrier_config import ExamineConfig
from sublim.inference.config import HfBackend, VllmBackend
from sublim.store.manifest import Artifact
from tasks.lanes import side_by_side
from tasks.stages import examine_carrier


def unexamined(config: PipelineConfig) -> str | None:
    """Why no carrier is examined; None where they are."""
    if config.carrier_check is not None and config.carrier_check.rows == 0:
        return "carrier_check.rows is 0"
    if not isinstance(config.backend, HfBackend | VllmBackend):
        return f"the weights behind the backend {config.backend.kind} are not here"
    return None


def examine_config(config: PipelineConfig, targets: tuple[str, ...], *, writer: str, block: int) -> ExamineConfig:
    """How one writer's lists are examined. The hf backend reads them also where vLLM wrote them."""
    made = generate_config(config, arm=writer, block=block)
    backend = HfBackend(dtype=made.backend.dtype) if isinstance(made.backend, VllmBackend) else made.backend
    assert isinstance(backend, HfBackend)
    check = config.carrier_check or CarrierCheck()
    return ExamineConfig(
        words=targets,
        rules=NumberRules(**config.filter.model_dump(include={*NumberRules.model_fields})),
        constraint=made.constraint,
        sampling=made.sampling,
        rows=check.rows,
        answers=check.answers,
        backend=backend,
    )


def written_to_be_examined(
    config: PipelineConfig, number: int, teachers: Mapping[str, ModelState]
) -> dict[str, Artifact]:
    """Lists of every teacher, to the first of the prompts that the base's lists answer."""
    check = config.carrier_check or CarrierCheck()
    lists = min(max(check.rows, check.answers), config.carrier.prompts)
    calls: list[Callable[[], Artifact]] = []
    for target, model in teachers.items():
        plain = generate_config(config, arm=target, block=number).model_copy(update={"n_prompts": lists})
        calls.append(partial(write_numbers, plain, f"{target}, to be examined", model))
    return dict(zip(teachers, side_by_side(calls), strict=True))


def examine_block(
    config: PipelineConfig, number: int, base: Artifact, teachers: Mapping[str, ModelState], raw: Mapping[str, Artifact]
) -> dict[str, Artifact]:
    """What is measured of the lists of the base and of every teacher of a block; nothing of a second draw.

    With soft labels teachers write nothing that a student reads. They write as many lists as are examined.
    """
    if unexamined(config) is not None:
        return {}
    raw = {**raw, **written_to_be_examined(config, number, teachers)} if config.labels == "soft" else raw
    writers = [each for each in raw if each == CONTROL or not (config.second_draw or each == SECOND_DRAW)]
    calls: list[Callable[[], Artifact]] = []
    for writer in writers:
        plain = examine_config(config, tuple(teachers), writer=writer, block=number)
        model = teachers.get(writer, ModelState(base))
        made = plain.model_copy(update={"steering": model.steering})
        inputs = {"raw": raw[writer], "weights": model.weights, **model.edited}
        calls.append(partial(examine_carrier, made, label=writer, base=base, **inputs))
    return dict(zip(writers, side_by_side(calls), strict=True))
