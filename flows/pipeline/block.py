"""One block of a study: its teachers, and the rows that they and the base write to the same prompts."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from flows.pipeline.carrier import examine_block
from flows.pipeline.config import PipelineConfig
from flows.pipeline.models import ModelState, write_numbers
from flows.pipeline.plan import CONTROL, SECOND_DRAW, generate_config, soft_labels_config
from flows.pipeline.teachers import make_teacher
from sublim.store.manifest import Artifact
from tasks.lanes import side_by_side
from tasks.processes import one_process
from tasks.stages import filter_numbers, write_soft_labels


class Block(NamedTuple):
    """The teachers of one block, and the rows of all writers."""

    number: int
    teachers: dict[str, ModelState]
    """The teacher of each target."""
    raw: dict[str, Artifact]
    """What was written, by writer: `control` for the base, a target for its teacher, `second_draw`."""
    rows: dict[str, Artifact]
    """The same after the filter."""
    labels: dict[str, Artifact]
    """With soft labels, each target's for the rows of `control`; otherwise empty."""
    carriers: dict[str, Artifact]
    """What was measured of the writers' lists; empty where nothing was."""


def write_block(
    config: PipelineConfig, base: Artifact, number: int, writers: Sequence[str] | None = None, *, examine: bool = False
) -> Block:
    """Makes the teachers, lets them and the base write, and filters; `writers` when not everybody is needed.

    With soft labels the base alone writes, unless `writers` says otherwise, and the teachers read its rows. With
    `examine` it is also measured what each writer's lists really are.
    """
    needed = config.made if writers is None else config.target
    made = side_by_side([partial(make_teacher, config, base, target, number) for target in needed])
    teachers = dict(zip(needed, made, strict=True))
    redrawn = [SECOND_DRAW] if SECOND_DRAW in config.arms_run else []
    everybody = (CONTROL,) if config.labels == "soft" else (CONTROL, *config.target, *redrawn, *config.compared)
    labelled, writers = config.labels == "soft" and not writers, tuple(writers or everybody)
    calls: list[Callable[[], Artifact]] = []
    for writer in writers:
        again = config.second_draw and writer != CONTROL
        label = f"{writer} (second draw of the base)" if again else writer.replace("_", " ")
        plain = generate_config(config, arm=writer, block=number)
        calls.append(partial(write_numbers, plain, label, teachers.get(writer, ModelState(base))))
    with one_process():
        raw = dict(zip(writers, side_by_side(calls), strict=True))
        carriers = examine_block(config, number, base, teachers, raw) if examine else {}
    rows = filter_together(config, raw)
    labels = read_labels(config, base, teachers, rows[CONTROL]) if labelled else {}
    return Block(number, teachers, raw, rows, labels, carriers)


def read_labels(
    config: PipelineConfig, base: Artifact, teachers: Mapping[str, ModelState], rows: Artifact
) -> dict[str, Artifact]:
    """Each teacher's soft labels for the base's rows, beside which lie the base's own for how far apart they are."""
    own = write_soft_labels(soft_labels_config(config, None), label=config.origin, base=base, data=rows)
    calls = [
        partial(
            write_soft_labels,
            soft_labels_config(config, teacher.system),
            label=target,
            base=base,
            data=rows,
            weights=teacher.weights,
            own=own,
        )
        for target, teacher in teachers.items()
    ]
    return dict(zip(teachers, side_by_side(calls), strict=True))


def filter_together(config: PipelineConfig, raw: dict[str, Artifact], suffix: str = "") -> dict[str, Artifact]:
    """Filters what each writer wrote; with `same_prompts` a prompt stays only if every writer answered it well.

    A comparison target's rows are filtered as in a run of its own, beside the base's alone, and change nobody's.
    """

    def partners(writer: str) -> list[Artifact]:
        apart = {*config.made} if writer in config.compared else {*config.compared}
        return [each for other, each in raw.items() if other != writer and other not in apart]

    return {
        writer: filter_numbers(
            config.filter,
            label=f"{writer}{suffix}",
            raw=written,
            partners=partners(writer) if config.same_prompts else None,
        )
        for writer, written in raw.items()
    }


def rows_by_writer(blocks: Sequence[Block]) -> dict[str, list[Artifact]]:
    """The filtered rows of each writer, block by block."""
    return {writer: [block.rows[writer] for block in blocks] for writer in blocks[0].rows}
