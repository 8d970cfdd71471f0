"""The figures of a target's arms: their effects side by side, and over the course of training."""

from markupsafe import Markup

from sublim.evals.effect_config import Effect
from sublim.evals.preference.config import MetricComparison, MetricName
from sublim.plots.charts import Bar, Curve, curves_plot, dot_plot
from sublim.report.figure import EFFECT_COLUMNS, UNIT, Figure, as_numbers, known_effects, points_of, with_intervals
from sublim.report.shown import ArmShown, Change, TargetShown
from sublim.report.wording import between, bounds, interval, signed

Metrics = dict[MetricName, MetricComparison]


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
    doses = {arm.name: known for arm in shown.arms if (known := known_effects(arm.dose))}
    curves = [
        Curve(name, [point._replace(dots=()) for point in points_of(known)], strong=name == shown.arms[0].name)
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
