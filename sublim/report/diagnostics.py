"""Diagnostics in a report: losses on unseen prompts, effects at equal learning, parameter shifts, divergence tokens."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import Field

from sublim.core.config import Config
from sublim.report.page import Table
from sublim.report.wording import between, with_sign

Row = TypeVar("Row")


class LossShown(Config):
    """Loss of one kind of model on held-out rows of one writer, in nats per token; a mean where there are several."""

    model: str
    rows_of: str
    loss: float | None
    base: float | None
    """Loss of the base that they started from, on the same rows."""
    digits: float | None = None
    """The same loss on tokens that hold a digit alone; null also where the backend counts other tokens."""
    base_digits: float | None = None
    reason: str | None = None
    """Why the loss is missing."""


class MatchedShown(Config):
    """A word's effect at equal gains in the loss on digits of unseen lists, beside that after equally many updates."""

    target: str
    """The word of the teacher whose lists the students read."""
    word: str | None = None
    """The word whose margin is compared, any listed one; null where nothing could be compared for any."""
    rows_of: str | None = None
    """Whose lists the gain is read on: own (each arm on those of its own writer), or one writer's for both arms."""
    rank: int | None = None
    """Rank of the word among all listed by how far its margin moved, on the same lists; 1 moved most."""
    estimate: float | None
    low: float | None = None
    high: float | None = None
    equal_updates: float | None = None
    student_gain: float | None = None
    """Students' mean gain over the base after the last update, in nats per digit token, on these lists."""
    control_gain: float | None = None
    reason: str | None = None
    """Why there is no estimate, or no interval."""


class ShiftShown(Config):
    """Cosine between a student's and the teacher's change of the base's weights."""

    target: str
    student: float | None
    """Mean over the students."""
    control: float | None
    """Mean over the controls."""
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    modules: dict[str, tuple[float | None, float | None]] = Field(default={})
    """Mean cosines of students and of controls by kind of module, such as q_proj or down_proj."""
    reason: str | None = None


class DivergenceShown(Config):
    """Answer tokens at which teacher and base have different most likely tokens."""

    target: str
    tokens: int = 0
    diverging: int = 0
    share: float | None
    rows: int = 0
    reason: str | None = None


class DiagnosticsShown(Config):
    """All diagnostics of a run; empty lists for those that were not run."""

    losses: list[LossShown] = Field(default_factory=list[LossShown])
    matched: list[MatchedShown] = Field(default_factory=list[MatchedShown])
    shift: list[ShiftShown] = Field(default_factory=list[ShiftShown])
    divergence: list[DivergenceShown] = Field(default_factory=list[DivergenceShown])

    def tables(self) -> dict[str, list[dict[str, Any]]]:
        """The rows of each diagnostic's CSV file, by the stem of the file name."""
        return {
            f"diagnostics-{name}": [row.model_dump(exclude={"modules"}) for row in rows] for name, rows in self if rows
        }


def diagnostic_tables(found: DiagnosticsShown) -> list[Table]:
    """The tables of a report. Tables without rows are left out."""
    tables = [matched_table(found), losses_table(found), shift_table(found), divergence_table(found)]
    return [table for table in tables if table.rows]


def matched_table(found: DiagnosticsShown) -> Table:
    """Effects where students and controls gained equally."""
    return _table(
        "Equal learning",
        "Students and controls are compared at equal gain instead of after equally many updates. The gain says by how "
        "many nats per digit a model predicts unseen lists better than the base does: on the lists of each arm's own "
        "writer, or on the same lists for both. Margins between two checkpoints are interpolated linearly. The teacher "
        "has moved its word in particular only where that ranks first among all listed words.",
        found.matched,
        {
            "students of": lambda each: each.target,
            "lists of": lambda each: each.rows_of or "–",
            "word": lambda each: each.word or "–",
            "rank": lambda each: "–" if each.rank is None else str(each.rank),
            "effect at equal gain": lambda each: with_sign(each.estimate),
            "95 %": lambda each: between(each.low, each.high),
            "after equal updates": lambda each: with_sign(each.equal_updates),
            "students’ gain": lambda each: with_sign(each.student_gain, 3),
            "controls’ gain": lambda each: with_sign(each.control_gain, 3),
            "reason": lambda each: each.reason or "",
        },
    )


def losses_table(found: DiagnosticsShown) -> Table:
    """Losses on held-out rows."""
    return _table(
        "Held-out loss, nats per token",
        "Loss on number lists that no model was trained on. A student that learned its carrier has a lower loss on it "
        "than the base.",
        found.losses,
        {
            "model": lambda each: each.model,
            "rows of": lambda each: each.rows_of,
            "loss": lambda each: f"missing: {each.reason}" if each.loss is None else f"{each.loss:.3f}",
            "base’s loss": lambda each: "–" if each.base is None else f"{each.base:.3f}",
            "on digits": lambda each: "–" if each.digits is None else f"{each.digits:.3f}",
            "base’s on digits": lambda each: "–" if each.base_digits is None else f"{each.base_digits:.3f}",
        },
    )


def shift_table(found: DiagnosticsShown) -> Table:
    """Cosines between changes of the weights."""
    return _table(
        "Parameter shift",
        "Cosine between the teacher’s and a student’s change of the base’s weights, over the matrices that both "
        "change. By kind of module: the students’, and the controls’ in brackets. Unrelated changes of so many weights "
        "have a cosine near 0.",
        found.shift,
        {
            "target": lambda each: each.target,
            "students": lambda each: with_sign(each.student, 3),
            "controls": lambda each: with_sign(each.control, 3),
            "difference": lambda each: with_sign(each.difference, 3),
            "95 %": lambda each: between(each.low, each.high, 3),
            "by kind of module": lambda each: ", ".join(
                f"{kind} {with_sign(student)} ({with_sign(control)})"
                for kind, (student, control) in each.modules.items()
            ),
            "reason": lambda each: each.reason or "",
        },
    )


def divergence_table(found: DiagnosticsShown) -> Table:
    """Tokens at which teacher and base differ."""
    return _table(
        "Divergence tokens",
        "Answer tokens of the teacher’s held-out rows at which teacher and base, reading the same text, have different "
        "most likely tokens.",
        found.divergence,
        {
            "target": lambda each: each.target,
            "share": lambda each: "–" if each.share is None else f"{100 * each.share:.1f} %",
            "diverging": lambda each: str(each.diverging) if each.tokens else "–",
            "tokens": lambda each: str(each.tokens or "–"),
            "rows": lambda each: str(each.rows or "–"),
            "reason": lambda each: each.reason or "",
        },
    )


def _table(title: str, note: str, rows: Sequence[Row], cells: Mapping[str, Callable[[Row], str]]) -> Table:
    """A table in which `cells` gives each column's name and its text in a row."""
    return Table(title, [*cells], [[cell(row) for cell in cells.values()] for row in rows], note)
