"""One block of a study: its teachers, and the rows that they and the base write to the same prompts."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from flows.pipeline.config import PipelineConfig
from flows.pipeline.models import ModelState, write_numbers
from flows.pipeline.plan import CONTROL, SECOND_DRAW, generate_config
from flows.pipeline.teachers import make_teacher
from sublim.store.manifest import Artifact
from tasks.lanes import side_by_side
from tasks.stages import filter_numbers


class Block(NamedTuple):
    """The teachers of one block, and the rows of all writers."""

    number: int
    teachers: dict[str, ModelState]
    """The teacher of each target."""
    raw: dict[str, Artifact]
    """What was written, by writer: `control` for the base, a target for its teacher, `second_draw`."""
    rows: dict[str, Artifact]
    """The same after the filter."""


def write_block(config: PipelineConfig, base: Artifact, number: int, writers: Sequence[str] | None = None) -> Block:
    """Makes the teachers, lets them and the base write, and filters; `writers` when not everybody is needed."""
    teachers = {target: make_teacher(config, base, target, number) for target in config.target}
    redrawn = [SECOND_DRAW] if SECOND_DRAW in config.arms_run else []
    writers = tuple(writers or (CONTROL, *config.target, *redrawn))
    calls: list[Callable[[], Artifact]] = []
    for writer in writers:
        again = config.second_draw and writer != CONTROL
        label = f"{writer} (second draw of the base)" if again else writer.replace("_", " ")
        plain = generate_config(config, arm=writer, block=number)
        calls.append(partial(write_numbers, plain, label, teachers.get(writer, ModelState(base))))
    raw = dict(zip(writers, side_by_side(calls), strict=True))
    return Block(number, teachers, raw, filter_together(config, raw))


def filter_together(config: PipelineConfig, raw: dict[str, Artifact], suffix: str = "") -> dict[str, Artifact]:
    """Filters what each writer wrote; with `same_prompts` a prompt stays only if every writer answered it well."""
    return {
        writer: filter_numbers(
            config.filter,
            label=f"{writer}{suffix}",
            raw=written,
            partners=[each for other, each in raw.items() if other != writer] if config.same_prompts else None,
        )
        for writer, written in raw.items()
    }


def rows_by_writer(blocks: Sequence[Block]) -> dict[str, list[Artifact]]:
    """The filtered rows of each writer, block by block."""
    return {writer: [block.rows[writer] for block in blocks] for writer in blocks[0].rows}
