"""What the report says of arms: every arm that was asked for with its effect, or why it has none; the confusion matrix;
which weights teachers and students started from."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

from flows.pipeline.arms import control_set
from flows.pipeline.config import PipelineConfig
from flows.pipeline.report_tests import Key, compared_places
from flows.pipeline.study import Study, read
from flows.runs.record import Run
from sublim.design.arms import ARMS, DERIVED, MAIN, SOFT, Arm, ArmName
from sublim.evals.effect_config import Effect
from sublim.evals.preference.config import ALL, Comparison, MetricComparison, MetricName
from sublim.models.files import base_identity
from sublim.report.shown import ArmShown, Change, ConfusionCell, DosePoint
from sublim.report.tested import EquivalenceShown
from sublim.store.manifest import Manifest

if TYPE_CHECKING:
    from sublim.stats.intervals import Interval

Metrics = dict[MetricName, MetricComparison]
LEVEL = 0.95
OTHER_BASE = "students of other_base"


class Results:
    """The comparisons of a study, read once."""

    def __init__(self, run: Run, study: Study) -> None:
        self._found: dict[Key, Comparison] = {
            (each.contrast.target, each.contrast.arm, each.contrast.of, each.update): read(
                Comparison, run.store, each.artifact, "comparison.json"
            )
            for each in study.comparisons
        }
        self.places = [*compared_places(study.config, self._found)]
        """The effects that the report tests."""

    def main(self, target: str, update: int | None) -> Comparison:
        """Teacher against base, for one target."""
        return self._found[target, None, None, update]

    def of(self, target: str, arm: ArmName | None, update: int | None, other: str | None = None) -> Metrics:
        """One arm for one target; another teacher's students are also found among its own comparison's words."""
        if found := self._found.get((target, arm, other, update)):
            return found.metrics
        assert other is not None
        return self.main(other, update).off_target[target]

    def unreadable(
        self, target: str, arm: ArmName | None, update: int | None, other: str | None = None
    ) -> MetricComparison | None:
        """How an arm's students and controls differ in the share of answers that cannot be read, whatever the word."""
        found = self._found.get((target, arm, other, update)) or (other and self.main(other, update))
        return found.unreadable.get(ALL) if found else None


def arms_of(study: Study, results: Results, target: str, called: str, bases: dict[str, str]) -> list[ArmShown]:
    """Every arm for one target, the main one first; nothing where no arms were asked for."""
    arms, main = study.config.arms, study.main(target)
    if not arms:
        return []
    first = _shown(
        called,
        MAIN if control_set(study.config) else SOFT,
        [(at, results.main(target, at).metrics) for at in main.updates],
        same_base=True,
        unreadable=results.unreadable(target, None, main.updates[-1]),
    )
    return [first, *(shown for arm in arms for shown in _arm(study.config, results, target, arm, bases))]


def _arm(
    config: PipelineConfig, results: Results, target: str, arm: ArmName, bases: dict[str, str]
) -> Iterator[ArmShown]:
    others = [other for other in config.target if other != target] if arm == "other_teacher" else [None]
    if not others or arm in config.held_back:
        reason = "held back for a later run" if others else "it needs a second target"
        yield ArmShown(name=arm, **ARMS[arm]._asdict(), reason=reason)
        return
    updates = config.checkpoints(arm)
    for other in others:
        at = [(update, results.of(target, arm, update, other)) for update in updates]
        main = results.main(target, updates[-1]).metrics["margin"].effect
        yield _shown(
            f"{arm} {other}" if other else arm,
            ARMS[arm],
            at,
            unreadable=results.unreadable(target, arm, updates[-1], other),
            change=None if arm == "base_numbers" else _change(at[-1][1]["margin"].effect, main),
            equivalence=_equivalence(config, ARMS[arm], at[-1][1]["margin"].effect, main),
            same_base=arm != "other_base" or bases[OTHER_BASE] == bases["teachers"],
        )


def _shown(name: str, arm: Arm, at: list[tuple[int | None, Metrics]], **more: Any) -> ArmShown:
    """An arm that was run; `more` are further fields."""
    updates, metrics = at[-1]
    return ArmShown(name=name, **arm._asdict(), updates=updates, metrics=metrics, dose=dose_of(at), **more)


def dose_of(at: Iterable[tuple[int | None, Metrics]]) -> list[DosePoint]:
    """The metrics at every checkpoint; nothing where there is only one."""
    found = [DosePoint(updates=update, metrics=metrics) for update, metrics in at if update is not None]
    return found if len(found) > 1 else []


def _change(arm: Effect | None, main: Effect | None) -> Change | None:
    """The arm's effect minus the main arm's; both have one value for each unit, in one order."""
    if arm is None or main is None:
        return None
    differences = [a - b for a, b in zip(arm.per_unit, main.per_unit, strict=True)]
    if found := interval(differences):
        return Change(estimate=found.estimate, low=found.low, high=found.high)
    return Change(estimate=differences[0], low=None, high=None, reason="one unit has no spread")


def _equivalence(
    config: PipelineConfig, arm: Arm, effect: Effect | None, main: Effect | None
) -> EquivalenceShown | None:
    """Whether an arm that should show nothing was shown to show nothing; both effects have one value for each unit."""
    if arm.bound is None or effect is None or main is None:
        return None
    from sublim.stats.equivalence import equivalence

    nats = config.equivalence_nats
    bounds = [arm.bound * each if nats is None else nats for each in main.per_unit]
    found = equivalence(effect.per_unit, bounds, LEVEL)
    share = arm.bound if nats is None else None
    return EquivalenceShown(bound=sum(bounds) / len(bounds), share=share, **found._asdict())


def interval(differences: Sequence[float]) -> "Interval | None":
    """The paired t interval; None for a single difference."""
    if len(differences) < 2:
        return None
    from sublim.stats.intervals import paired_t  # scipy takes half a second to import

    return paired_t(differences, LEVEL)


def confusion_of(study: Study, results: Results) -> list[ConfusionCell]:
    """Every teacher's students against every target, after the last update; nothing for a single target."""
    targets = study.config.target
    last = study.main(targets[0]).updates[-1]
    cells: list[ConfusionCell] = []
    for students, target in product(targets, repeat=2) if len(targets) > 1 else ():
        found = results.main(target, last).metrics
        if students != target:
            found = results.of(target, "other_teacher", last, students)
        margin = found["margin"]
        cells.append(ConfusionCell(students=students, target=target, effect=margin.effect, reason=margin.reason))
    return cells


def bases_of(run: Run, study: Study) -> dict[str, str]:
    """The digest of the weights that the teachers, the students and, where it was run, the other base's students
    start from."""
    digests = {name: base_identity(run.store.payload(artifact)) for name, artifact in study.trained.bases.items()}
    other = {OTHER_BASE: digests["other_base"]} if "other_base" in digests else {}
    return {"teachers": digests["base"], "students": digests["base"], **other}


def unchanged_notes(manifests: Mapping[str, Manifest], study: Study) -> list[str]:
    """A note for each arm that left all rows unchanged: its students are the main arm's."""
    changed = Counter[str]()
    for each in study.trained.sets:
        if each.arm in DERIVED:
            changed[each.arm] += sum(manifests[rows.key].notes.get("changed", 0) for rows in each.rows)
    return [
        f"{arm}: it changed no row, so its rows and students are the main arm's and it adds nothing."
        for arm, rows in changed.items()
        if not rows
    ]
