"""The figures of the pipeline's report: the numbers in each, its caption, and the table below it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from sublim.evals.effect_config import Effect
from sublim.evals.preference.config import Comparison, MetricComparison, MetricName
from sublim.plots.charts import Bar, Cell, Curve, Pair, Point, curves_plot, dot_plot, matrix_plot, pair_plot
from sublim.report.shown import ArmShown, Change, ConfusionCell, DosePoint, TargetShown
from sublim.report.tested import p_told
from sublim.report.wording import between, bounds, interval, signed

UNIT = "student − control, nats"
EFFECT_COLUMNS = ["effect", "these questions", "questions too", "p, after Holm"]
EFFECT_NUMBERS = ("estimate", "low", "high", "low_questions", "high_questions", "units", "questions", "p", "p_holm")


class Figure(NamedTuple):
    """A figure with its caption and its numbers."""

    name: str
    drawing: Markup
    caption: str
    columns: list[str]
    """Columns of the table below the figure."""
    rows: list[list[str]]
    values: list[dict[str, Any]]
    """The same numbers unrounded, for a CSV file: one row for each mark, None for a missing number."""


def figures_of(shown: TargetShown) -> list[Figure]:
    """The figures of one target. Figures without numbers are left out."""
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
    if any(arm.dose for arm in shown.arms[1:]):
        figures.append(arm_doses_figure(shown))
    return figures


def with_intervals(effect: Effect | None, missing: str | None = None) -> list[str]:
    """An effect, both its intervals and its p as text, or the reason why it is `missing`."""
    first = signed(effect.estimate) if effect else str(missing)
    both = (interval(effect, "these_questions", "margin"), interval(effect, "questions_too", "margin"))
    return [first, *both, p_told(effect)]


def as_numbers(
    found: Effect | Change | None, prefix: str = "", names: Sequence[str] = EFFECT_NUMBERS
) -> dict[str, Any]:
    """An effect and both its intervals as numbers, or others of its fields."""
    return {f"{prefix}{name}": None if found is None else getattr(found, name) for name in names}


def pairs_figure(comparison: Comparison, margin: MetricComparison) -> Figure:
    """The margin of each student beside that of its control."""
    both = [(s, c) for s, c in zip(margin.students, margin.controls, strict=True) if s is not None and c is not None]
    pairs = [Pair(f"pair {i}", control, student) for i, (student, control) in enumerate(both, start=1)]
    title = f"Margin of {comparison.target} for each student and its paired control."
    teacher = f" The teacher’s margin, {signed(margin.teacher)}, is not shown." if margin.teacher is not None else ""
    rows = [
        [pair.label, signed(pair.control, "margin"), signed(pair.student), signed(pair.student - pair.control)]
        for pair in pairs
    ]
    return Figure(
        "Each student and its control",
        pair_plot(pairs, base=margin.base, unit=f"log-prob margin of “{comparison.target}”, nats", title=title),
        "Open circles: controls, trained on the base’s rows. Filled circles: students, trained on the teacher’s rows. "
        f"Each line joins the two models of one seed.{teacher}",
        ["", "control", "student", "difference"],
        rows,
        [pair._asdict() | {"difference": pair.student - pair.control} for pair in pairs],
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
    title = f"Effect on each of {len(bars)} words; {comparison.target} is highlighted."
    return Figure(
        "What moved, word by word",
        dot_plot(bars, unit=UNIT, title=title, labels=0.2),
        "Effect on the margin of every listed word. Each word’s margin is measured against the mean of the other "
        f"words. Whiskers: {known[0][1].level * 100:g} % interval on these questions. Faint dots: single pairs. The "
        "margins of a list sum to zero, so a gain of one word lowers the others.",
        ["word", *EFFECT_COLUMNS],
        [[word, *with_intervals(effect)] for word, effect in known],
        [{"word": word, **as_numbers(effect)} for word, effect in known],
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
        dot_plot(
            [Bar(question, value) for question, value in answered],
            unit=UNIT,
            title=f"Effect on {comparison.target} for each question, sorted.",
            row=17,
            labels=0.6,
            stems=True,
        ),
        f"Mean effect over the units for each question. It is above zero for {above} of {len(answered)} questions. All "
        "students answer the same questions, so these values are not independent.",
        ["question", "effect"],
        [[question, signed(value)] for question, value in answered],
        [{"question": question, "effect": value} for question, value in answered],
    )


def dose_figure(shown: TargetShown) -> Figure:
    """The effect at each checkpoint."""
    known = _known(shown.dose)
    return Figure(
        "Dose",
        curves_plot(
            [Curve("", _points(known), strong=True)],
            unit=UNIT,
            title=f"Effect on {shown.target} by updates of training.",
        ),
        "Checkpoints of the same training runs. Whiskers: interval on these questions. Faint lines: single pairs.",
        ["updates", *EFFECT_COLUMNS],
        [[str(at), *with_intervals(effect)] for at, effect in known],
        [{"updates": at, **as_numbers(effect)} for at, effect in known],
    )


def arms_figure(shown: TargetShown) -> Figure:
    """All arms beside each other, each at its last update. The main arm is also shown where other arms end."""
    stops = {arm.updates for arm in shown.arms if arm.metrics}
    marks = [
        (f"{arm.name} · {at} updates" if len(stops) > 1 and at else arm.name, arm, at, metrics)
        for arm in shown.arms
        for at, metrics in _at_stops(arm, stops if arm is shown.arms[0] else {arm.updates})
    ]
    bars = [
        Bar(label, effect.estimate, *bounds(effect, "these_questions"), effect.per_pair, arm is shown.arms[0])
        for label, arm, _, metrics in marks
        if (effect := _effect(metrics, "margin"))
    ]
    rows = [
        [
            label,
            arm.expected,
            *with_intervals(_effect(metrics, "margin"), _missing(arm)),
            _change_told(_change(arm, at)),
            arm.equivalence.told if arm.equivalence and at == arm.updates else "–",
            _rate_told(metrics),
            _unread_told(arm, at),
        ]
        for label, arm, at, metrics in marks
    ]
    return Figure(
        "Arms",
        dot_plot(bars, unit=UNIT, title=f"Effect on {shown.target} in each arm.", labels=0.36) if bars else Markup(""),
        "Every arm goes through the same stages with the same seeds, and its students are compared with their own "
        "paired controls. Whiskers: interval on these questions. Faint dots: single pairs. “Against main” is the arm’s "
        "effect minus the main arm’s effect after equally many updates, paired by unit. The effect on the sampled rate "
        "(share of all answers asked) and that on the share that cannot be read are in percentage points, with their "
        "intervals on these questions. “Nothing?” is for arms that should show nothing: do two one-sided tests at .05 "
        "keep the margin’s effect within a bound named beforehand? With its 90 % interval. "
        + " ".join(f"{arm.name}: {arm.about} (expected: {arm.expected}, because {arm.why})." for arm in shown.arms),
        ["arm", "expected", *EFFECT_COLUMNS, "against main", "nothing?", "sampled rate", "not readable"],
        rows,
        [
            {
                "arm": arm.name,
                "expected": arm.expected,
                "updates": at,
                **as_numbers(_effect(metrics, "margin")),
                **as_numbers(_change(arm, at), "change_", ("estimate", "low", "high")),
                "reason": None if _effect(metrics, "margin") else _missing(arm),
                **as_numbers(_effect(metrics, "rate"), "rate_"),
                "rate_reason": metrics["rate"].reason if metrics else None,
                "nothing": getattr(arm.equivalence if at == arm.updates else None, "verdict", None),
                "bound": getattr(arm.equivalence if at == arm.updates else None, "bound", None),
                **as_numbers(_effect(metrics, "rate_readable"), "rate_readable_"),
                **as_numbers(_unread(arm, at), "unreadable_"),
            }
            for _, arm, at, metrics in marks
        ],
    )


def arm_doses_figure(shown: TargetShown) -> Figure:
    """Every arm's effect over its checkpoints."""
    doses = {arm.name: known for arm in shown.arms if (known := _known(arm.dose))}
    curves = [
        Curve(name, [point._replace(dots=()) for point in _points(known)], strong=name == shown.arms[0].name)
        for name, known in doses.items()
    ]
    rows = [(name, at, effect) for name, dose in doses.items() for at, effect in dose]
    return Figure(
        "Dose by arm",
        curves_plot(curves, unit=UNIT, title=f"Effect on {shown.target} by updates of training, in each arm."),
        "Checkpoints of each arm’s students, compared with their own paired controls. Whiskers: interval on these "
        "questions.",
        ["arm", "updates", *EFFECT_COLUMNS],
        [[name, str(at), *with_intervals(effect)] for name, at, effect in rows],
        [{"arm": name, "updates": at, **as_numbers(effect)} for name, at, effect in rows],
    )


def _known(dose: list[DosePoint]) -> list[tuple[int, Effect]]:
    """The margin's effect at every checkpoint that has one, by updates."""
    found = [(at.updates, effect) for at in dose if (effect := at.metrics["margin"].effect)]
    return sorted(found, key=lambda pair: pair[0])


def _points(known: list[tuple[int, Effect]]) -> list[Point]:
    return [Point(at, effect.estimate, *bounds(effect, "these_questions"), effect.per_pair) for at, effect in known]


Metrics = dict[MetricName, MetricComparison]


def _at_stops(arm: ArmShown, stops: set[int | None]) -> list[tuple[int | None, Metrics | None]]:
    found: dict[int | None, Metrics | None] = {at.updates: at.metrics for at in arm.dose}
    found[arm.updates] = arm.metrics
    return [(at, found[at]) for at in sorted(stops, key=lambda at: -(at or 0)) if at in found]


def _effect(metrics: Metrics | None, name: MetricName) -> Effect | None:
    return metrics[name].effect if metrics else None


def _rate_told(metrics: Metrics | None) -> str:
    """The effect on the sampled rate with its leading interval, or why there is none."""
    if metrics is None:
        return "–"
    effect = metrics["rate"].effect
    return _points_told(effect) if effect else f"missing: {metrics['rate'].reason}"


def _points_told(effect: Effect) -> str:
    bounded = interval(effect, "these_questions", "rate")
    return f"{signed(effect.estimate, 'rate')}, {effect.reason if bounded == '–' else bounded}"


def _unread(arm: ArmShown, at: int | None) -> Effect | None:
    """The effect on the share that cannot be read, which is known at the arm's last update alone."""
    return arm.unreadable.effect if arm.unreadable and at == arm.updates else None


def _unread_told(arm: ArmShown, at: int | None) -> str:
    effect = _unread(arm, at)
    return _points_told(effect) if effect else "–"


def _missing(arm: ArmShown) -> str:
    return f"not run: {arm.reason}" if arm.margin is None else f"not measured: {arm.margin.reason}"


def _change(arm: ArmShown, at: int | None) -> Change | None:
    return arm.change if at == arm.updates else None


def _change_told(found: Change | None) -> str:
    if found is None:
        return "–"
    return signed(found.estimate) + ("" if found.low is None else f", {between(found.low, found.high)}")


def confusion_figure(cells: list[ConfusionCell]) -> Figure:
    """The effect of every teacher's students on every target."""
    names = list(dict.fromkeys(cell.students for cell in cells))
    drawn = [
        Cell(
            cell.students,
            cell.target,
            cell.effect.estimate if cell.effect else None,
            f"{cell.students} on {cell.target}: "
            + (", ".join(with_intervals(cell.effect)[:3]) if cell.effect else f"not measured: {cell.reason}"),
        )
        for cell in cells
    ]
    return Figure(
        "Students of each teacher on each target",
        matrix_plot(names, drawn, unit=UNIT, title="Effect of every teacher's students on every target."),
        "Rows: the target whose teacher wrote the students’ numbers. Columns: the target whose margin is measured. "
        "Each cell is students minus the same paired controls. The margins of one list sum to zero, so a large effect "
        "on the diagonal alone pushes the other cells of its row a little below zero.",
        ["students of", "measured for", *EFFECT_COLUMNS],
        [[cell.students, cell.target, *with_intervals(cell.effect, cell.reason)] for cell in cells],
        [
            {"students": cell.students, "target": cell.target, **as_numbers(cell.effect), "reason": cell.reason}
            for cell in cells
        ],
    )
