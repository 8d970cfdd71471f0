"""What a steering run found, as sentences and tables for its report."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from sublim.report.page import Table, bounded
from sublim.steering.dose_curve_config import Curve, SteeredPoint

KINDS = ("student", "control", "difference")
"""The cosines of an alignment: of the student, of its control, and of their difference with the teacher's vector."""


class Shown(NamedTuple):
    """One target's results, read from the store."""

    target: str
    vectors: dict[str, dict[str, Any]]
    curve: Curve
    mechanism: dict[str, Any] | None


def findings(shown: Shown) -> Iterator[str]:
    """Sentences that answer the question, with numbers."""
    curve = shown.curve
    tried = [point for point in curve.points if point.layers and not point.control and point.estimate is not None]
    base = curve.points[0]
    start = "missing" if base.margin is None else f"{base.margin:+.2f} nats"
    yield f"{shown.target}: margin of the unsteered base {start} over {curve.questions} questions"
    for layers in dict.fromkeys(tuple(point.layers) for point in tried):
        best = max((p for p in tried if tuple(p.layers) == layers), key=lambda point: point.estimate or 0)
        tries = sum(tuple(point.layers) == layers for point in tried)
        chosen = f", the largest of {tries} points" if tries > 1 else ""
        low_high = bounded(best.estimate or 0, best.low, best.high)
        against = (
            f"; {best.random} random vectors {best.random_low:+.2f} to {best.random_high:+.2f}, p = "
            f"{best.beyond_random:.2f}"
            if best.random_low is not None and best.random_high is not None and best.beyond_random is not None
            else "; no random vectors there"
        )
        exam = "" if best.mmlu_pro is None else f"; MMLU-Pro {best.mmlu_pro:.3f} (unsteered {_unsteered(base)})"
        name = " + ".join(map(str, layers))
        yield f"layer {name}: most at strength {best.alpha:g} ({best.position}){chosen}, {low_high} nats{against}{exam}"
    if lost := [point for point in curve.points if point.layers and not point.control and point.estimate is None]:
        yield f"{len(lost)} points could not be measured: {lost[0].reason}"
    if shown.mechanism:
        yield from _mechanism_findings(shown.mechanism)


def _unsteered(base: SteeredPoint) -> str:
    return f"missing: {base.mmlu_pro_reason}" if base.mmlu_pro is None else f"{base.mmlu_pro:.3f}"


def _mechanism_findings(found: dict[str, Any]) -> Iterator[str]:
    rows = found["eas"]
    last = [row for row in rows if row["update"] == rows[-1]["update"]]
    best = max(last, key=lambda row: row["difference"]["mean"])
    text = ", ".join(f"{kind} {best[kind]['mean']:+.2f}" for kind in ("student", "control", "difference"))
    spread = f"{min(best['random']):+.2f} to {max(best['random']):+.2f}"
    yield f"alignment with the teacher is largest at layer {best['layer']}: {text}; random directions {spread}"
    for name, sign, verb in (("sufficiency", 1, "adding v_student to the base"), ("replaced", -1, "replacing it")):
        for pair, points in enumerate(found[name]):
            told = [point for point in points if point["estimate"] is not None]
            if told:
                most = max(told, key=lambda point: sign * point["estimate"])
                yield (
                    f"{verb} (student {pair}) does most at layer {most['layers'][0]}, of {len(told)} layers: "
                    f"{bounded(most['estimate'], most['low'], most['high'])} nats, random vectors "
                    f"{_spread(SteeredPoint.model_validate(most))}"
                )
            if len(told) < len(points):
                reason = next(point["reason"] for point in points if point["estimate"] is None)
                yield f"{verb} (student {pair}): {len(points) - len(told)} layers could not be measured: {reason}"


def tables(shown: Shown) -> Iterator[Table]:
    """Every true point of the curve, the vectors, and the mechanism layer by layer."""
    yield Table(
        f"{shown.target}: curve",
        ("layers", "strength", "tokens", "change (nats)", "random", "rate", "MMLU-Pro"),
        [row_of(point) for point in shown.curve.points if not point.control],
    )
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
        yield _alignment_table(shown)
        for name in ("sufficiency", "replaced"):
            for pair, points in enumerate(shown.mechanism[name]):
                rows = [row_of(SteeredPoint.model_validate(point)) for point in points]
                title = f"{shown.target}: {name}, student {pair}"
                yield Table(
                    title, ("layers", "strength", "tokens", "change (nats)", "random", "rate", "MMLU-Pro"), rows
                )
        rewritten = shown.mechanism["rewritten"]
        if rewritten:
            yield Table(
                f"{shown.target}: students of a teacher that wrote without a direction",
                ("layer", "direction", "effect (nats)", "student", "control"),
                [
                    (
                        str(each["layer"]),
                        each["vector"],
                        f"missing: {each['reason']}"
                        if each["estimate"] is None
                        else bounded(each["estimate"], each["low"], each["high"]),
                        "–" if each["student"] is None else f"{each['student']:+.2f}",
                        "–" if each["control"] is None else f"{each['control']:+.2f}",
                    )
                    for each in rewritten
                ],
            )


def _alignment_table(shown: Shown) -> Table:
    assert shown.mechanism is not None
    return Table(
        f"{shown.target}: cosine with v_teacher",
        ("place", "updates", "student", "control", "student − control", "random", "|v_student|", "|v_teacher|"),
        [
            (
                row["name"],
                str(row["update"] or "all"),
                *(bounded(row[kind]["mean"], row[kind]["low"], row[kind]["high"]) for kind in KINDS),
                f"{min(row['random']):+.2f} to {max(row['random']):+.2f}",
                f"{row['student_length']:.4f}",
                f"{row['teacher_length']:.4f}",
            )
            for row in shown.mechanism["eas"]
        ],
    )


def row_of(point: SteeredPoint) -> tuple[str, ...]:
    """A point as cells."""
    return (
        " + ".join(map(str, point.layers)) or "none",
        f"{point.alpha:g}" + (" (relative)" if point.scale == "relative" else ""),
        point.position,
        f"missing: {point.reason}" if point.estimate is None else bounded(point.estimate, point.low, point.high),
        _spread(point),
        f"missing: {point.rate_reason}"
        if point.rate is None
        else f"{bounded(point.rate, point.rate_low, point.rate_high)} ({point.readable} of {point.answers} read)",
        f"missing: {point.mmlu_pro_reason}"
        if point.mmlu_pro is None
        else f"{bounded(point.mmlu_pro, point.mmlu_pro_low, point.mmlu_pro_high)} ({point.mmlu_pro_read} read)",
    )


def _spread(point: SteeredPoint) -> str:
    """How far random vectors as long move the margin."""
    if point.random_low is None or point.random_high is None:
        return "none" if point.layers else "–"
    return f"{point.random_low:+.2f} to {point.random_high:+.2f} ({point.random})"
