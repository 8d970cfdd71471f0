"""The figures of the pipeline's report: the numbers in each, its caption, and the table below it."""

from sublim.evals.effect_config import Effect
from sublim.evals.preference.config import Comparison, MetricComparison
from sublim.plots.charts import Bar, Cell, Curve, Pair, curves_plot, dot_plot, matrix_plot, pair_plot
from sublim.report.figure import EFFECT_COLUMNS, UNIT, Figure, as_numbers, known_effects, points_of, with_intervals
from sublim.report.figures_arms import arm_doses_figure, arms_figure
from sublim.report.shown import ConfusionCell, TargetShown
from sublim.report.wording import bounds, signed


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
    known = known_effects(shown.dose)
    return Figure(
        "Dose",
        curves_plot(
            [Curve("", points_of(known), strong=True)],
            unit=UNIT,
            title=f"Effect on {shown.target} by updates of training.",
        ),
        "Checkpoints of the same training runs. Whiskers: interval on these questions. Faint lines: single pairs.",
        ["updates", *EFFECT_COLUMNS],
        [[str(at), *with_intervals(effect)] for at, effect in known],
        [{"updates": at, **as_numbers(effect)} for at, effect in known],
    )


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
