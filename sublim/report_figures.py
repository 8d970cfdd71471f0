"""The figures of a report: which numbers go into each, its caption, and the table behind it."""

from typing import NamedTuple

from markupsafe import Markup

from sublim.figures import Bar, Pair, Point, dose_plot, dot_plot, pair_plot, stem_plot
from sublim.preference_config import Comparison, Effect, MetricComparison
from sublim.report_config import TargetShown, bounds, interval, signed

UNIT = "student − control, nats"
TOLD = ["effect", "these questions", "questions too"]


class Table(NamedTuple):
    """The numbers behind a figure."""

    columns: list[str]
    rows: list[list[str]]


class Figure(NamedTuple):
    """A figure with its caption and its numbers."""

    name: str
    drawing: Markup
    caption: str
    table: Table


def figures_of(shown: TargetShown) -> list[Figure]:
    """The figures of one target; those whose numbers are missing are left out."""
    comparison = shown.comparison
    margin = comparison.metrics["margin"]
    figures: list[Figure] = []
    if margin.effect is not None:
        figures += [
            pairs_figure(comparison, margin),
            words_figure(comparison),
            questions_figure(comparison, margin.effect),
        ]
    if len([point for point in shown.dose if point.metrics["margin"].effect]) > 1:
        figures.append(dose_figure(shown))
    if shown.arms:
        figures.append(arms_figure(shown))
    return figures


def told(effect: Effect) -> list[str]:
    """An effect and both its intervals as text."""
    these, beyond = (interval(effect, which, "margin") for which in ("these_questions", "questions_too"))
    return [signed(effect.estimate), these, beyond]


def pairs_figure(comparison: Comparison, margin: MetricComparison) -> Figure:
    """Students beside their controls."""
    both = [(s, c) for s, c in zip(margin.students, margin.controls, strict=True) if s is not None and c is not None]
    pairs = [Pair(f"pair {i}", control, student) for i, (student, control) in enumerate(both, start=1)]
    title = f"Margin of {comparison.target} for each student and its paired control."
    teacher = f" The teacher stands at {signed(margin.teacher)}, off the figure." if margin.teacher is not None else ""
    rows = [
        [pair.label, signed(pair.control, "margin"), signed(pair.student), signed(pair.student - pair.control)]
        for pair in pairs
    ]
    return Figure(
        "Each student and its control",
        pair_plot(pairs, base=margin.base, unit=f"log-prob margin of “{comparison.target}”, nats", title=title),
        "Open: control, trained on the base’s rows. Filled: student, trained on the teacher’s. "
        f"One line for each seed.{teacher}",
        Table(["", "control", "student", "difference"], rows),
    )


def words_figure(comparison: Comparison) -> Figure:
    """The effect on every listed word."""
    found = {comparison.target: comparison.metrics, **comparison.off_target}
    effects = {word: metrics["margin"].effect for word, metrics in found.items()}
    known = sorted(((word, effect) for word, effect in effects.items() if effect), key=lambda pair: -pair[1].estimate)
    bars = [
        Bar(word, effect.estimate, *bounds(effect, "these_questions"), effect.per_pair, word == comparison.target)
        for word, effect in known
    ]
    rows = [
        [
            word,
            signed(effect.estimate),
            interval(effect, "these_questions", "margin"),
            interval(effect, "questions_too", "margin"),
        ]
        for word, effect in known
    ]
    title = f"Effect on each of {len(bars)} words; {comparison.target} is highlighted."
    return Figure(
        "What moved, word by word",
        dot_plot(bars, unit=UNIT, title=title, labels=0.2),
        "Effect on the margin of every listed word, each against the mean of the others; whiskers: "
        f"{known[0][1].level * 100:g} % interval on these questions; faint: single pairs. Margins of a list sum to "
        "zero, so a gain of one word lowers the rest.",
        Table(["word", *TOLD], rows),
    )


def questions_figure(comparison: Comparison, effect: Effect) -> Figure:
    """The effect on every question."""
    answered = [
        (question, value)
        for question, value in zip(comparison.questions, effect.per_question, strict=True)
        if value is not None
    ]
    answered.sort(key=lambda pair: -pair[1])
    above = sum(value > 0 for _, value in answered)
    return Figure(
        "Question by question",
        stem_plot(
            [Bar(question, value) for question, value in answered],
            unit=UNIT,
            title=f"Effect on {comparison.target} for each question, sorted.",
        ),
        f"Mean effect over the units for each question: above zero for {above} of {len(answered)}. All students answer "
        "the same questions, so these are not independent.",
        Table(["question", "effect"], [[question, signed(value)] for question, value in answered]),
    )


def dose_figure(shown: TargetShown) -> Figure:
    """The effect after more and more updates."""
    known = [(at.updates, effect) for at in shown.dose if (effect := at.metrics["margin"].effect)]
    known.sort(key=lambda pair: pair[0])
    points = [Point(at, effect.estimate, *bounds(effect, "these_questions"), effect.per_pair) for at, effect in known]
    rows = [
        [
            str(at),
            signed(effect.estimate),
            interval(effect, "these_questions", "margin"),
            interval(effect, "questions_too", "margin"),
        ]
        for at, effect in known
    ]
    return Figure(
        "Dose",
        dose_plot(points, unit=UNIT, title=f"Effect on {shown.target} by updates of training."),
        "Checkpoints of the same runs; whiskers: interval on these questions; faint lines: single pairs.",
        Table(["updates", *TOLD], rows),
    )


def arms_figure(shown: TargetShown) -> Figure:
    """All arms beside each other."""
    main = shown.comparison.metrics["margin"]
    arms = [
        (shown.arm, "positive", main),
        *((arm.name, arm.expected, arm.metrics["margin"]) for arm in shown.arms),
    ]
    bars = [
        Bar(name, found.effect.estimate, *bounds(found.effect, "these_questions"), found.effect.per_pair, found is main)
        for name, _, found in arms
        if found.effect
    ]
    rows = [
        [name, expected, *(told(found.effect) if found.effect else [f"not measured: {found.reason}", "–", "–"])]
        for name, expected, found in arms
    ]
    return Figure(
        "Arms",
        dot_plot(bars, unit=UNIT, title=f"Effect on {shown.target} in each arm.", labels=0.3) if bars else Markup(""),
        "Every arm through the same stages and seeds, against the same controls.",
        Table(["arm", "expected", *TOLD], rows),
    )
