"""The tests of a pipeline run: every effect that the report tests, corrected together."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from flows.pipeline.config import PipelineConfig
from sublim.design.arms import ArmName
from sublim.evals.effect_config import Effect
from sublim.evals.preference.config import Comparison, MetricComparison, MetricName
from sublim.evals.specificity.config import TargetEffects, TargetTable
from sublim.report.shown import SpecificShown
from sublim.report.tested import RunTests

Key = tuple[str, ArmName | None, str | None, int | None]
"""Target, arm (None: the main one), the other target whose teacher wrote the rows, number of updates."""
Metrics = dict[MetricName, MetricComparison]


class Place(NamedTuple):
    """One effect that the report tests, and how to put it back with its test."""

    name: str
    """`owl, other_base, 64 updates, margin`; each is counted once."""
    effect: Effect | None
    put: Callable[[Effect], None]


def test_together(places: Iterable[Place]) -> RunTests | None:
    """Puts p and its correction beside every effect that the report tests; None where nothing can be tested."""
    found = {place.name: place for place in places}
    if not any((each := place.effect) and (each.units > 1 or each.p is not None) for place in found.values()):
        return None
    from sublim.evals.tested import corrected  # numpy and scipy, for which runs without tests need not wait
    from sublim.stats.corrections import smallest_sign_flip_p

    effects = corrected({name: place.effect for name, place in found.items()})
    if not effects:
        return None
    for name, effect in effects.items():
        found[name].put(effect)
    alpha = round(1 - next(iter(effects.values())).level, 9)
    return RunTests(
        count=len(effects),
        smallest_sign_flip_p=smallest_sign_flip_p(min(effect.units for effect in effects.values())),
        alpha=alpha,
        surviving=[name for name, effect in effects.items() if (effect.p_holm or 0) <= alpha],
    )


def compared_places(config: PipelineConfig, compared: Mapping[Key, Comparison]) -> Iterator[Place]:
    """Every effect on a target that the report shows: all arms and updates, by margin and by rate.

    `put` replaces the effect in `compared`.
    """
    for key, metrics in _shown(config, compared):
        for metric, found in metrics.items():
            if _shows(config, key, metric):
                yield Place(_name(key, metric), found.effect, partial(_put, metrics, metric))


def specific_places(shown: Sequence[SpecificShown]) -> Iterator[Place]:
    """The specific effect of every target and γ, at every checkpoint and by every metric; generic effects and the table
    of all words are shown untested.

    γ brings the p of its permutation test, which is one-sided; the others get that of the two-sided t test.
    """
    for at in shown:
        for metric, table in at.found.metrics.items():
            for target, effects in table.targets.items():
                put = partial(_put_specific, table.targets, target)
                yield Place(_name((f"{target} specific", None, None, at.updates), metric), effects.specific, put)
            gamma = table.gamma.model_copy(update={"p": table.permutation.p})
            put = partial(_put_gamma, at.found.metrics, metric)
            yield Place(_name(("γ", None, None, at.updates), metric), gamma, put)


def _put_specific(targets: dict[str, TargetEffects], target: str, effect: Effect) -> None:
    targets[target] = targets[target].model_copy(update={"specific": effect})


def _put_gamma(tables: dict[MetricName, TargetTable], metric: MetricName, effect: Effect) -> None:
    tables[metric] = tables[metric].model_copy(update={"gamma": effect})


def _put(metrics: Metrics, metric: MetricName, effect: Effect) -> None:
    metrics[metric] = metrics[metric].model_copy(update={"effect": effect})


def _shown(config: PipelineConfig, compared: Mapping[Key, Comparison]) -> Iterator[tuple[Key, Metrics]]:
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


def _name(key: Key, metric: MetricName) -> str:
    target, arm, of, at = key
    parts = (target, f"{arm or ''} {of or ''}".strip(), f"{at} updates" if at else "", metric)
    return ", ".join(part for part in parts if part)
