"""The tests of a pipeline run: every effect that the report tests, corrected together."""

from collections.abc import Iterator

from flows.pipeline.config import PipelineConfig
from sublim.design.arms import ArmName
from sublim.evals.preference.config import Comparison, MetricComparison, MetricName
from sublim.report.tested import RunTests

Key = tuple[str, ArmName | None, str | None, int | None]
"""Target, arm (None: the main one), the other target whose teacher wrote the rows, number of updates."""
Metrics = dict[MetricName, MetricComparison]


def test_together(config: PipelineConfig, compared: dict[Key, Comparison]) -> RunTests | None:
    """Puts p and its correction beside every effect that the report tests; None where nothing can be tested.

    Tested are all arms, updates and targets, by margin and by rate. `compared` are changed: their effects are replaced.
    """
    places = {
        (*key, metric): found
        for key, found in _shown(config, compared)
        for metric in found
        if _shows(config, key, metric)
    }
    if not any((effect := found[name[-1]].effect) and effect.units > 1 for name, found in places.items()):
        return None
    from sublim.evals.tested import tested  # numpy and scipy, for which runs without tests need not wait
    from sublim.stats.corrections import smallest_sign_flip_p

    effects = tested({name: found[name[-1]].effect for name, found in places.items()})
    if not effects:
        return None
    for name, effect in effects.items():
        metrics = places[name]
        metrics[name[-1]] = metrics[name[-1]].model_copy(update={"effect": effect})
    alpha = round(1 - next(iter(effects.values())).level, 9)
    return RunTests(
        count=len(effects),
        smallest_sign_flip_p=smallest_sign_flip_p(min(effect.units for effect in effects.values())),
        alpha=alpha,
        surviving=[_name(*name) for name, effect in effects.items() if (effect.p_holm or 0) <= alpha],
    )


def _shown(config: PipelineConfig, compared: dict[Key, Comparison]) -> Iterator[tuple[Key, Metrics]]:
    """What was measured of targets. A main arm's comparison has the other targets too, as their arm other_teacher."""
    for key, comparison in compared.items():
        target, arm, _, at = key
        yield key, comparison.metrics
        for other in config.target if arm is None else ():
            as_other: Key = (other, "other_teacher", target, at)
            if other in comparison.off_target and as_other not in compared:
                yield as_other, comparison.off_target[other]


def _shows(config: PipelineConfig, key: Key, metric: MetricName) -> bool:
    """Whether the report shows this effect. Of other teachers it has the margin at the end, and the rest as an arm."""
    _, arm, _, at = key
    if arm != "other_teacher":
        return True
    as_arm = arm in config.arms_run and at in config.checkpoints(arm)
    return as_arm or (metric == "margin" and at == config.checkpoints()[-1])


def _name(target: str, arm: ArmName | None, of: str | None, at: int | None, metric: MetricName) -> str:
    parts = (target, f"{arm or ''} {of or ''}".strip(), f"{at} updates" if at else "", metric)
    return ", ".join(part for part in parts if part)
