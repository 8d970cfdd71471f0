"""Diagnostics in a report: losses on unseen prompts, effects at equal learning, parameter shifts, divergence tokens."""

from typing import Any

from pydantic import Field

from sublim.core.config import Config
from sublim.report.page import Table
from sublim.report.wording import between, with_sign


class LossShown(Config):
    """Loss of one kind of model on held-out rows of one writer, in nats per token; a mean where there are several."""

    model: str
    rows_of: str
    loss: float | None
    base: float | None
    """Loss of the base that they started from, on the same rows."""
    reason: str | None = None
    """Why the loss is missing."""


class MatchedShown(Config):
    """The effect at equal gains in the loss on unseen prompts, compared with the effect after equally many updates."""

    target: str
    estimate: float | None
    low: float | None = None
    high: float | None = None
    equal_updates: float | None = None
    student_gain: float | None = None
    """Students' mean gain over the base after the last update, in nats per token, on held-out rows of their carrier."""
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
    modules: dict[str, tuple[float | None, float | None]] = Field(
        default_factory=dict[str, tuple[float | None, float | None]]
    )
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
        named = {
            "diagnostics-losses": self.losses,
            "diagnostics-matched": self.matched,
            "diagnostics-shift": self.shift,
            "diagnostics-divergence": self.divergence,
        }
        return {name: [row.model_dump(exclude={"modules"}) for row in rows] for name, rows in named.items() if rows}


def diagnostic_tables(found: DiagnosticsShown) -> list[Table]:
    """The tables of a report. Tables without rows are left out."""
    tables = [matched_table(found), losses_table(found), shift_table(found), divergence_table(found)]
    return [table for table in tables if table.rows]


def matched_table(found: DiagnosticsShown) -> Table:
    """Effects where students and controls gained equally."""
    return Table(
        "Equal learning",
        ["target", "effect at equal gain", "95 %", "after equal updates", "students’ gain", "controls’ gain", "reason"],
        [
            [
                each.target,
                with_sign(each.estimate),
                between(each.low, each.high),
                with_sign(each.equal_updates),
                with_sign(each.student_gain, 3),
                with_sign(each.control_gain, 3),
                each.reason or "",
            ]
            for each in found.matched
        ],
        "Students and controls are compared at equal gain instead of after equally many updates. The gain says by how "
        "many nats per token a model predicts held-out rows of its own carrier better than the base does. Margins "
        "between two checkpoints are interpolated linearly.",
    )


def losses_table(found: DiagnosticsShown) -> Table:
    """Losses on held-out rows."""
    return Table(
        "Held-out loss, nats per token",
        ["model", "rows of", "loss", "base’s loss"],
        [
            [
                each.model,
                each.rows_of,
                f"missing: {each.reason}" if each.loss is None else f"{each.loss:.3f}",
                "–" if each.base is None else f"{each.base:.3f}",
            ]
            for each in found.losses
        ],
        "Loss on number lists that no model was trained on. A student that learned its carrier has a lower loss on it "
        "than the base.",
    )


def shift_table(found: DiagnosticsShown) -> Table:
    """Cosines between changes of the weights."""
    return Table(
        "Parameter shift",
        ["target", "students", "controls", "difference", "95 %", "by kind of module", "reason"],
        [
            [
                each.target,
                with_sign(each.student, 3),
                with_sign(each.control, 3),
                with_sign(each.difference, 3),
                between(each.low, each.high, 3),
                ", ".join(f"{kind} {with_sign(pair[0])} ({with_sign(pair[1])})" for kind, pair in each.modules.items()),
                each.reason or "",
            ]
            for each in found.shift
        ],
        "Cosine between the teacher’s and a student’s change of the base’s weights, over the matrices that both "
        "change. By kind of module: the students’, and the controls’ in brackets. Unrelated changes of so many weights "
        "have a cosine near 0.",
    )


def divergence_table(found: DiagnosticsShown) -> Table:
    """Tokens at which teacher and base differ."""
    return Table(
        "Divergence tokens",
        ["target", "share", "diverging", "tokens", "rows", "reason"],
        [
            [
                each.target,
                "–" if each.share is None else f"{100 * each.share:.1f} %",
                str(each.diverging) if each.tokens else "–",
                str(each.tokens or "–"),
                str(each.rows or "–"),
                each.reason or "",
            ]
            for each in found.divergence
        ],
        "Answer tokens of the teacher’s held-out rows at which teacher and base, reading the same text, have different "
        "most likely tokens.",
    )
