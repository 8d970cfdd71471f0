"""Specific effects, γ and placebo ranks in the report: sentences, heat maps, and what `--json` prints."""

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from sublim.evals.effect_config import Effect
from sublim.evals.preference.config import Comparison
from sublim.evals.specificity.config import Permutation, PlaceboRank, TargetTable
from sublim.plots.charts import Cell, matrix_plot
from sublim.report.figure import EFFECT_COLUMNS, UNIT, Figure, as_numbers, with_intervals
from sublim.report.shown import RunReport, SpecificShown, TargetShown
from sublim.report.wording import bounds, few_blocks, interval, signed

SINGLES = {"per_pair", "per_unit", "per_question"}


def listed(words: Sequence[str]) -> str:
    """`wolf`, `wolf and panda`, `wolf, dog and panda`."""
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def teachers_of(words: Sequence[str]) -> str:
    """`a panda teacher`, `owl and panda teachers`."""
    if len(words) > 1:
        return f"{listed(words)} teachers"
    return f"{'an' if words[0][0] in 'aeiou' else 'a'} {words[0]} teacher"


def margin_of(shown: SpecificShown) -> TargetTable | None:
    """The tables of the margin; None where it could not be computed."""
    return shown.found.metrics.get("margin")


def leading(effect: Effect, shown: SpecificShown) -> str:
    """An effect with the interval to quote."""
    bounded = interval(effect, shown.found.leads, "margin")
    told = f"no interval: {effect.reason}" if bounded == "–" else f"{effect.level * 100:g} % interval {bounded}"
    return f"{signed(effect.estimate)} nats ({told})"


def lead(run: RunReport) -> str:
    """The sentence that the report opens with: γ of several targets, or the specific effect of one."""
    shown = run.specific[-1] if run.specific else None
    table = margin_of(shown) if shown else None
    if shown is None:
        return (
            "Only one target has a teacher, so what follows is a total effect: it may be what any teacher's rows do. "
            "Set `against` to tell them apart."
        )
    if table is None:
        return f"No specific effect could be computed: {shown.found.missing.get('margin')}."
    if len(run.targets) > 1:
        told = f"{leading(table.gamma, shown)}, {p_told(table.permutation)}"
        return f"Specific to the own target, γ over {listed(shown.found.targets)}: {told}."
    word = run.targets[0].target
    others = [target for target in shown.found.targets if target != word]
    told = leading(table.targets[word].specific, shown)
    return f"Specific to {word}, against students of {teachers_of(others)}: {told}."


def lead_more(run: RunReport) -> str:
    """What the opening sentence does and does not show; empty without a specific effect."""
    shown = run.specific[-1] if run.specific else None
    table = margin_of(shown) if shown else None
    if shown is None or table is None:
        return ""
    units = " ".join(filter(None, (shown.found.about_units, _few(table.gamma, shown))))
    if len(run.targets) > 1:
        return f"{_says(table.gamma, shown)} {units}"
    word = run.targets[0].target
    found = table.targets[word]
    parts = f"Of the total effect of {signed(found.total.estimate)} nats, {signed(found.generic.estimate)} is generic"
    return f"{_says(found.specific, shown)} {parts}: so far do the other teachers' students move {word}. {units}"


def _few(effect: Effect, shown: SpecificShown) -> str:
    return few_blocks(effect.units) if shown.found.unit == "block" else ""


def p_told(test: Permutation) -> str:
    """The permutation test in words."""
    kind = "exact" if test.exact else f"from {test.arrangements:,} arrangements drawn"
    return f"one-sided permutation p {test.p:.4g} ({kind}, smallest possible {test.smallest:.3g})"


def _says(effect: Effect, shown: SpecificShown) -> str:
    low, high = bounds(effect, shown.found.leads)
    if low is None or high is None:
        return "The estimate alone shows nothing."
    if low <= 0 <= high:
        return "The interval contains zero: a preference of this teacher's own is not shown."
    if effect.p_holm is not None and effect.p_holm > 1 - effect.level:
        tests = f"all {effect.comparisons} tests of the report (p {effect.p_holm:.2g})"
        return f"The interval excludes zero, but the effect does not survive correction for {tests}."
    return "The interval excludes zero."


def placebo_told(total: PlaceboRank, specific: PlaceboRank | None = None) -> str:
    """Placebo ranks in words."""
    rest = "" if specific is None else f", {specific.rank} of {specific.of} by specific effect"
    return f"Placebo rank (1 = moved furthest): {total.rank} of {total.of} words by total effect{rest}."


def placebo_of(comparison: Comparison) -> PlaceboRank | None:
    """The rank of the target by total effect, from the comparison with controls; None without effects."""
    metrics = [comparison.metrics, *comparison.off_target.values()]
    effects = [found["margin"].effect for found in metrics]
    sizes = [abs(effect.estimate) for effect in effects if effect is not None]
    if effects[0] is None:
        return None
    return PlaceboRank(rank=sum(size >= sizes[0] for size in sizes), of=len(sizes))


def target_lines(run: RunReport, shown: TargetShown) -> list[str]:
    """What the report and the UI say of one target: specific, generic and total effect, and its placebo rank."""
    at = run.specific[-1] if run.specific else None
    table = margin_of(at) if at else None
    if at is None or table is None:
        rank = placebo_of(shown.comparison)
        return [placebo_told(rank)] if rank else []
    found = table.targets[shown.target]
    others = [target for target in at.found.targets if target != shown.target]
    return [
        f"Specific to {shown.target}, against students of {teachers_of(others)}: {leading(found.specific, at)}. "
        f"Generic: {leading(found.generic, at)}. Total: {leading(found.total, at)}.",
        placebo_told(found.rank_total, found.rank_specific),
    ]


def specific_json(run: RunReport, shown: TargetShown) -> dict[str, Any]:
    """The keys that one target has in `--json`: total, generic, specific, gamma, their dose and the placebo ranks."""
    total = shown.comparison.metrics["margin"].effect
    rank = placebo_of(shown.comparison)
    last = shown.dose[-1].updates if shown.dose else None
    keys: dict[str, Any] = {
        "total": _effect(total, last) if total else None,
        "generic": None,
        "specific": None,
        "gamma": None,
        "placebo_rank": {"total": rank.model_dump() if rank else None, "specific": None},
        "specific_dose": [],
        "specific_reason": "only one target has a teacher: set `against`",
    }
    if not run.specific:
        return keys
    points = {each.updates: point for each in run.specific if (point := point_json(each, shown.target))}
    if not points:
        return keys | {"specific_reason": run.specific[-1].found.missing.get("margin")}
    dose = [{"updates": at, **point} for at, point in points.items()] if len(points) > 1 else []
    return keys | [*points.values()][-1] | {"specific_dose": dose, "specific_reason": None}


def point_json(at: SpecificShown, target: str) -> dict[str, Any] | None:
    """One target's effects at one checkpoint as `--json` prints them; None where the margin is missing."""
    table, rate = margin_of(at), at.found.metrics.get("rate")
    if table is None:
        return None
    found = table.targets[target]
    against = [each for each in at.found.targets if each != target]
    return {
        "total": _effect(found.total, at.updates),
        "generic": _effect(found.generic, at.updates, against=against),
        "specific": _effect(found.specific, at.updates, against=against),
        "specific_rate": _effect(rate.targets[target].specific, at.updates, against=against) if rate else None,
        "gamma": gamma_json(table, at),
        "placebo_rank": {"total": found.rank_total.model_dump(), "specific": found.rank_specific.model_dump()},
    }


def gamma_json(table: TargetTable, at: SpecificShown) -> dict[str, Any]:
    """γ as `--json` prints it."""
    test = table.permutation
    return _effect(
        table.gamma,
        at.updates,
        **test.model_dump(exclude={"smallest"}),
        p_smallest=test.smallest,
        targets=[*at.found.targets],
        unit=at.found.unit,
        about_units=at.found.about_units,
    )


def tables_json(run: RunReport) -> list[dict[str, Any]]:
    """The tables of students by words at every checkpoint, as `--json` prints them."""
    return [
        {
            "updates": at.updates,
            "targets": [*at.found.targets],
            "against": [*at.against],
            "metrics": {
                metric: {
                    **table.model_dump(include={"table", "moved", "teachers"}),
                    "gamma": gamma_json(table, at),
                }
                for metric, table in at.found.metrics.items()
            },
            "missing": at.found.missing,
        }
        for at in run.specific
    ]


def _effect(effect: Effect, updates: int | None, **more: Any) -> dict[str, Any]:
    return {**effect.model_dump(exclude=SINGLES), "updates": updates, **more}


def specific_figures(run: RunReport) -> list[Figure]:
    """The heat maps of the last checkpoint and every target's effects; none where one target alone has a teacher."""
    at = run.specific[-1] if run.specific else None
    table = margin_of(at) if at else None
    if at is None or table is None:
        return []
    alike = "A word that moves alike in every row is moved by any teacher. The margins of one row sum to zero."
    maps = [target_map(table)]
    if len(at.found.words) > len(at.found.targets):
        maps.append(heat_map("Students by all listed words", table.moved, at.found.words, alike))
    return [*maps, effects_figure(at, table)]


def target_map(table: TargetTable, name: str = "Students by targets") -> Figure:
    """The heat map of which γ is the diagonal minus the rest."""
    gamma = "γ is the mean over columns of the outlined cell minus the mean of the others in its column."
    return heat_map(name, table.table, [*table.table], gamma)


def heat_map(name: str, values: dict[str, dict[str, float]], columns: Sequence[str], note: str) -> Figure:
    """Students of each teacher by words: how far each margin moved from the controls'."""
    rows = [*values]
    cells = [
        Cell(
            row,
            column,
            values[row][column],
            f"students of {row}, on {column}: {values[row][column]:+.3f}",
            row == column,
        )
        for row in rows
        for column in columns
    ]
    return Figure(
        name,
        matrix_plot(rows, cells, unit=UNIT, title=f"{name}: margins minus the controls'.", columns=columns),
        "Rows: the target whose teacher wrote the students’ numbers. Columns: the word whose margin is measured, minus "
        f"the controls’, mean over units and questions. Outlined: the own target. {note}",
        ["students of", *columns],
        [[row, *(signed(values[row][column]) for column in columns)] for row in rows],
        [{"students": row, **values[row]} for row in rows],
    )


def effects_figure(at: SpecificShown, table: TargetTable) -> Figure:
    """Total, generic and specific effect of every target, and γ, as a table."""
    found = {
        (target, part): getattr(each, part)
        for target, each in table.targets.items()
        for part in ("specific", "generic", "total")
    } | {("γ", p_told(table.permutation)): table.gamma}
    ranks = {target: placebo_told(each.rank_total, each.rank_specific) for target, each in table.targets.items()}
    return Figure(
        "Specific, generic and total",
        Markup(""),
        "Total: student minus control. Generic: the students of the other teachers minus control, on the same word. "
        f"Specific: total minus generic. γ: the mean of the specific effects. {at.found.about_units} "
        + " ".join(f"{target}: {rank}" for target, rank in ranks.items()),
        ["target", "part", *EFFECT_COLUMNS],
        [[target, part, *with_intervals(effect)] for (target, part), effect in found.items()],
        [{"target": target, "part": part, **as_numbers(effect)} for (target, part), effect in found.items()],
    )
