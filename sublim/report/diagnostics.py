"""Diagnostics as a report shows them: what was learned of the carriers, at equal learning, in which direction."""

from typing import Any

from pydantic import Field

from sublim.core.config import Config


class LossShown(Config):
    """Models of one kind on unseen rows of one writer, in nats per token; students' and controls' are means."""

    model: str
    rows_of: str
    loss: float | None
    base: float | None
    """That of the base they started from, on the same rows."""
    reason: str | None = None
    """Why a loss is missing."""


class MatchedShown(Config):
    """The effect at equal gains of held-out loss, beside the one after equal updates."""

    target: str
    estimate: float | None
    low: float | None = None
    high: float | None = None
    equal_updates: float | None = None
    student_gain: float | None = None
    """Mean gain of the students after their last update, in nats per token, on unseen rows like their own."""
    control_gain: float | None = None
    reason: str | None = None
    """Why there is no estimate, or no interval."""


class ShiftShown(Config):
    """Cosine of the students' and the teacher's changes of the weights."""

    target: str
    student: float | None
    """Mean over the students."""
    control: float | None
    """The same of their controls."""
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    modules: dict[str, tuple[float | None, float | None]] = Field(
        default_factory=dict[str, tuple[float | None, float | None]]
    )
    """Mean cosine of students and of controls by kind of module: q_proj, down_proj."""
    reason: str | None = None


class DivergenceShown(Config):
    """Answer tokens where teacher and base would choose differently."""

    target: str
    tokens: int = 0
    diverging: int = 0
    share: float | None
    rows: int = 0
    reason: str | None = None


class DiagnosticsShown(Config):
    """All diagnostics of a run."""

    losses: list[LossShown] = Field(default_factory=list[LossShown])
    matched: list[MatchedShown] = Field(default_factory=list[MatchedShown])
    shift: list[ShiftShown] = Field(default_factory=list[ShiftShown])
    divergence: list[DivergenceShown] = Field(default_factory=list[DivergenceShown])

    def tables(self) -> dict[str, list[dict[str, Any]]]:
        """Each diagnostic's numbers as rows of a table, by the stem of its file."""
        named = {
            "diagnostics-losses": self.losses,
            "diagnostics-matched": self.matched,
            "diagnostics-shift": self.shift,
            "diagnostics-divergence": self.divergence,
        }
        return {name: [row.model_dump(exclude={"modules"}) for row in rows] for name, rows in named.items() if rows}


def told(value: float | None, digits: int = 3) -> str:
    """A number with its sign; a dash for what is missing."""
    return "–" if value is None else f"{value:+.{digits}f}".replace("-", "−")


def between(low: float | None, high: float | None, digits: int = 3) -> str:
    """Both bounds of an interval; a dash for what is missing."""
    return "–" if low is None or high is None else f"{told(low, digits)} to {told(high, digits)}"


def matched_rows(found: DiagnosticsShown) -> list[list[str]]:
    """The table of effects at equal learning."""
    return [
        [
            each.target,
            told(each.estimate, 2),
            between(each.low, each.high, 2),
            told(each.equal_updates, 2),
            told(each.student_gain),
            told(each.control_gain),
            each.reason or "",
        ]
        for each in found.matched
    ]


def loss_rows(found: DiagnosticsShown) -> list[list[str]]:
    """The table of held-out losses."""
    return [
        [
            each.model,
            each.rows_of,
            f"missing: {each.reason}" if each.loss is None else f"{each.loss:.3f}",
            "–" if each.base is None else f"{each.base:.3f}",
        ]
        for each in found.losses
    ]


def shift_rows(found: DiagnosticsShown) -> list[list[str]]:
    """The table of cosines."""
    return [
        [
            each.target,
            told(each.student),
            told(each.control),
            told(each.difference),
            between(each.low, each.high),
            ", ".join(f"{kind} {told(pair[0], 2)} ({told(pair[1], 2)})" for kind, pair in each.modules.items()),
            each.reason or "",
        ]
        for each in found.shift
    ]


def divergence_rows(found: DiagnosticsShown) -> list[list[str]]:
    """The table of divergence tokens."""
    return [
        [
            each.target,
            "–" if each.share is None else f"{100 * each.share:.1f} %",
            str(each.diverging) if each.tokens else "–",
            str(each.tokens) if each.tokens else "–",
            str(each.rows) if each.rows else "–",
            each.reason or "",
        ]
        for each in found.divergence
    ]
