"""What a steering run found: the results as `--json` prints them, and the sentences and tables made from them."""

from collections.abc import Iterator, Sequence
from typing import Any

from flows.steering.alignments import alignment_findings, alignment_tables
from flows.steering.necessity import NecessityShown, necessity_findings, necessity_table
from sublim.core.config import Config
from sublim.report.page import Table, bounded
from sublim.steering.alignment_config import Alignment, Eas, Measure
from sublim.steering.dose_curve_config import SteeredPoint


class RewrittenShown(Config):
    """The effect of students of a teacher that wrote without a direction, in nats."""

    layer: int
    vector: str
    random: bool
    student: float | None
    control: float | None
    estimate: float | None = None
    low: float | None = None
    high: float | None = None
    reason: str | None


class MechanismShown(Config):
    """The mechanism's measures; every layer with its random fellows."""

    eas: list[Eas]
    """At answer tokens: the cosines of student, control and their difference with the own teacher's vector."""
    alignment_paper: list[Alignment]
    alignment_above_control: list[Alignment]
    sufficiency: list[list[SteeredPoint]]
    replaced: list[list[SteeredPoint]]
    """The student's own vector replaced, layer by layer, for each pair."""
    necessity: list[list[NecessityShown]]
    """The same and every control: v_control, other teachers' vectors, principal components, random directions."""
    rewritten: list[RewrittenShown]

    @property
    def alignments(self) -> dict[Measure, list[Alignment]]:
        """Both alignments by name."""
        return {
            "alignment_paper": self.alignment_paper,
            "alignment_above_control": self.alignment_above_control,
        }


class Shown(Config):
    """One target's results."""

    target: str
    vectors: dict[str, dict[str, Any]]
    curve: list[SteeredPoint]
    mechanism: MechanismShown | None


def findings(shown: Shown) -> Iterator[str]:
    """Sentences that answer the question, with numbers."""
    base, *steered = (point for point in shown.curve if not point.control)
    tried = [point for point in steered if point.estimate is not None]
    start = "missing" if base.margin is None else f"{base.margin:+.2f} nats"
    questions = max(point.questions for point in shown.curve)
    yield f"{shown.target}: margin of the unsteered base {start} over {questions} questions"
    for layers in dict.fromkeys(tuple(point.layers) for point in tried):
        own = [point for point in tried if tuple(point.layers) == layers]
        best = max(own, key=lambda point: point.estimate or 0)
        chosen = f", the largest of {len(own)} points" if len(own) > 1 else ""
        low_high = bounded(best.estimate or 0, best.low, best.high)
        against = (
            "no random vectors there"
            if best.random_low is None
            else f"{best.random} random vectors {best.random_low:+.2f} to {best.random_high:+.2f}, p = "
            f"{best.beyond_random:.2f}"
        )
        exam = "" if best.mmlu_pro is None else f"; MMLU-Pro {best.mmlu_pro:.3f} (unsteered {_unsteered(base)})"
        place = f"layer {' + '.join(map(str, layers))}: most at strength {best.alpha:g} ({best.position})"
        yield f"{place}{chosen}, {low_high} nats; {against}{exam}"
    if lost := [point for point in steered if point.estimate is None]:
        yield f"{len(lost)} points could not be measured: {lost[0].reason}"
    if shown.mechanism:
        yield from _mechanism_findings(shown.target, shown.mechanism)


def _unsteered(base: SteeredPoint) -> str:
    return f"missing: {base.mmlu_pro_reason}" if base.mmlu_pro is None else f"{base.mmlu_pro:.3f}"


def _mechanism_findings(target: str, found: MechanismShown) -> Iterator[str]:
    for measure, rows in found.alignments.items():
        yield alignment_findings(target, measure, rows)
    verb = "adding v_student to the base"
    for pair, points in enumerate(found.sufficiency):
        told = [(point.estimate, point) for point in points if point.estimate is not None]
        if told:
            estimate, most = max(told, key=lambda each: each[0])
            yield (
                f"{verb} (student {pair}) does most at layer {most.layers[0]}, of {len(told)} layers: "
                f"{bounded(estimate, most.low, most.high)} nats, random vectors {_spread(most)}"
            )
        if len(told) < len(points):
            reason = next(point.reason for point in points if point.estimate is None)
            yield f"{verb} (student {pair}): {len(points) - len(told)} layers could not be measured: {reason}"
    for pair, rows in enumerate(found.necessity):
        yield from necessity_findings(pair, rows)


def tables(shown: Shown) -> Iterator[Table]:
    """Every true point of the curve, the vectors, and the mechanism layer by layer."""
    yield _points_table(f"{shown.target}: curve", [point for point in shown.curve if not point.control])
    yield Table(
        f"{shown.target}: vectors",
        ("vector", "length", "stream's length", "rows", "cosine of two halves"),
        [
            (
                name,
                f"{note['norm']:.3f}",
                "–" if note["residual_norm"] is None else f"{note['residual_norm']:.2f}",
                str(note["rows"] or "–"),
                f"{note['split_half_cosine']:.3f}" if "split_half_cosine" in note else "–",
            )
            for name, note in shown.vectors.items()
        ],
    )
    if shown.mechanism:
        yield from _mechanism_tables(shown.target, shown.mechanism)


def _mechanism_tables(target: str, found: MechanismShown) -> Iterator[Table]:
    yield from (alignment_tables(target, measure, rows) for measure, rows in found.alignments.items())
    yield Table(
        f"{target}: cosine with v_teacher at answer tokens",
        ("place", "updates", "student", "control", "student − control", "random", "|v_student|", "|v_teacher|"),
        [
            (
                row.name,
                str(row.update or "all"),
                *(
                    bounded(cosine.mean, cosine.low, cosine.high)
                    for cosine in (row.student, row.control, row.difference)
                ),
                f"{min(row.random):+.2f} to {max(row.random):+.2f}",
                f"{row.student_length:.4f}",
                f"{row.teacher_length:.4f}",
            )
            for row in found.eas
        ],
    )
    for pair, points in enumerate(found.sufficiency):
        yield _points_table(f"{target}: sufficiency, student {pair}", points)
    for pair, rows in enumerate(found.necessity):
        yield necessity_table(f"{target}: replaced by the base's, student {pair}", rows)
    if found.rewritten:
        yield Table(
            f"{target}: students of a teacher that wrote without a direction",
            ("layer", "direction", "effect (nats)", "student", "control"),
            [
                (
                    str(each.layer),
                    each.vector,
                    _told(each.estimate, each.low, each.high, each.reason),
                    "–" if each.student is None else f"{each.student:+.2f}",
                    "–" if each.control is None else f"{each.control:+.2f}",
                )
                for each in found.rewritten
            ],
            "A random direction holds next to nothing of the teacher's change: that projecting it out does nothing "
            "says little about v_teacher in particular.",
        )


def _points_table(title: str, points: Sequence[SteeredPoint]) -> Table:
    columns = ("layers", "strength", "tokens", "change (nats)", "random", "rate", "MMLU-Pro")
    return Table(title, columns, [_row_of(point) for point in points])


def _row_of(point: SteeredPoint) -> tuple[str, ...]:
    alone = "" if point.rate_readable is None else f", {point.rate_readable:.2f} of those"
    read = f" ({point.readable} of {point.answers} read{alone})"
    examined = f" ({point.mmlu_pro_read} read)"
    return (
        " + ".join(map(str, point.layers)) or "none",
        f"{point.alpha:g}" + (" (relative)" if point.scale == "relative" else ""),
        point.position,
        _told(point.estimate, point.low, point.high, point.reason),
        _spread(point),
        _told(point.rate, point.rate_low, point.rate_high, point.rate_reason, read),
        _told(point.mmlu_pro, point.mmlu_pro_low, point.mmlu_pro_high, point.mmlu_pro_reason, examined),
    )


def _told(value: float | None, low: float | None, high: float | None, reason: str | None, over: str = "") -> str:
    """A value with its interval and what it is over, or why it is missing."""
    return f"missing: {reason}" if value is None else f"{bounded(value, low, high)}{over}"


def _spread(point: SteeredPoint) -> str:
    """How far random vectors as long move the margin."""
    if point.random_low is None:
        return "none" if point.layers else "–"
    return f"{point.random_low:+.2f} to {point.random_high:+.2f} ({point.random})"
