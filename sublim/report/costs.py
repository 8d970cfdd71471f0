"""The cost of an effect: the change in MMLU-Pro beside it, for every arm and checkpoint that has both."""

from sublim.evals.effect_config import Effect
from sublim.plots.charts import Cross, scatter_plot
from sublim.report.figure import EFFECT_COLUMNS, UNIT, Figure, as_numbers, with_intervals
from sublim.report.shown import CostShown, TargetShown
from sublim.report.wording import bounds, interval, signed


def cost_figures(shown: TargetShown) -> list[Figure]:
    """One figure for each way of reading the answer's letter; none where no model answered MMLU-Pro."""
    metrics = dict.fromkeys(cost.metric for cost in shown.costs)
    return [_figure(shown, metric, [cost for cost in shown.costs if cost.metric == metric]) for metric in metrics]


def _figure(shown: TargetShown, metric: str, costs: list[CostShown]) -> Figure:
    read = metric.replace("_", " ")
    crosses = [
        Cross(
            f"{cost.arm} · {cost.updates}" if cost.updates else cost.arm,
            _points(cost.cost),
            (cost.effect.estimate, *bounds(cost.effect, "these_questions")),
            cost.arm == shown.arm,
        )
        for cost in costs
    ]
    return Figure(
        f"Cost against effect, {read}",
        scatter_plot(
            crosses,
            across="MMLU-Pro, student − control, points",
            up=UNIT,
            title=f"Effect on {shown.target} against the change in MMLU-Pro ({read}).",
        ),
        "Each point is an arm at a checkpoint. Horizontal: the change in the share of MMLU-Pro questions answered "
        f"correctly ({read}). Vertical: the effect. Both are student minus paired control. Whiskers: intervals on "
        "these questions.",
        ["arm", "updates", *EFFECT_COLUMNS, "MMLU-Pro, points", "these questions"],
        [[cost.arm, str(cost.updates or "last"), *with_intervals(cost.effect), *_told(cost.cost)] for cost in costs],
        [
            {
                "arm": cost.arm,
                "updates": cost.updates,
                **as_numbers(cost.effect),
                **as_numbers(cost.cost, "mmlu_pro_"),
            }
            for cost in costs
        ],
    )


def _points(cost: Effect) -> tuple[float, float | None, float | None]:
    low, high = bounds(cost, "these_questions")
    return 100 * cost.estimate, None if low is None else 100 * low, None if high is None else 100 * high


def _told(cost: Effect) -> list[str]:
    return [signed(cost.estimate, "rate"), interval(cost, "these_questions", "rate")]
