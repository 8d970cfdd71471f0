"""What the report says of arms: every arm that was asked for with its effect, or why it has none; the confusion matrix;
which weights teachers and students started from."""

from collections.abc import Iterator, Mapping

from flows.pipeline.arms import Contrast
from flows.pipeline.config import PipelineConfig
from flows.pipeline.study import Study
from flows.runs.record import Run
from sublim.design.arms import ARMS, DERIVED, MAIN, ArmName
from sublim.evals.effect_config import Effect
from sublim.evals.preference.config import Comparison, MetricComparison, MetricName
from sublim.models.files import base_identity
from sublim.report.shown import ArmShown, Change, ConfusionCell, DosePoint
from sublim.store.manifest import Artifact, Manifest

Metrics = dict[MetricName, MetricComparison]
LEVEL = 0.95


class Results:
    """The comparisons of a study, read once."""

    def __init__(self, run: Run, study: Study) -> None:
        self._found = {(each.contrast, each.update): _read(run, each.artifact) for each in study.comparisons}

    def main(self, target: str, update: int | None) -> Comparison:
        """Teacher against base, for one target."""
        return self._found[_main(self._found, target), update]

    def of(self, target: str, arm: ArmName, update: int | None, other: str | None = None) -> Metrics:
        """One arm for one target; another teacher's students are also found among its own comparison's words."""
        for (contrast, at), found in self._found.items():
            if (contrast.target, contrast.arm, contrast.of, at) == (target, arm, other, update):
                return found.metrics
        assert other is not None
        return self.main(other, update).off_target[target]


def _main(found: dict[tuple[Contrast, int | None], Comparison], target: str) -> Contrast:
    return next(contrast for contrast, _ in found if contrast.target == target and contrast.arm is None)


def _read(run: Run, artifact: Artifact) -> Comparison:
    return Comparison.model_validate_json((run.store.payload(artifact) / "comparison.json").read_text(encoding="utf-8"))


def arms_of(study: Study, results: Results, target: str, called: str, same: dict[str, bool]) -> list[ArmShown]:
    """Every arm for one target, the main one first; nothing where no arms were asked for."""
    arms, main = study.config.arms, study.main(target)
    if not arms:
        return []
    last = main.updates[-1]
    first = ArmShown(
        name=called,
        about=MAIN.about,
        expected=MAIN.expected,
        why=MAIN.why,
        updates=last,
        metrics=results.main(target, last).metrics,
        dose=_dose([(at, results.main(target, at).metrics) for at in main.updates]),
        same_base=True,
    )
    return [first, *(shown for arm in arms for shown in _arm(study.config, results, target, arm, same))]


def _arm(
    config: PipelineConfig, results: Results, target: str, arm: ArmName, same: dict[str, bool]
) -> Iterator[ArmShown]:
    plan = ARMS[arm]
    others = [other for other in config.target if other != target] if arm == "other_teacher" else [None]
    reason = (
        "it needs a second target" if not others else "held back for a later run" if arm in config.held_back else None
    )
    if reason:
        yield ArmShown(name=arm, about=plan.about, expected=plan.expected, why=plan.why, reason=reason)
        return
    updates = config.checkpoints(arm)
    for other in others:
        at = [(update, results.of(target, arm, update, other)) for update in updates]
        main = results.main(target, updates[-1]).metrics["margin"].effect
        yield ArmShown(
            name=f"{arm} {other}" if other else arm,
            about=plan.about,
            expected=plan.expected,
            why=plan.why,
            updates=updates[-1],
            metrics=at[-1][1],
            dose=_dose(at),
            change=None if arm == "base_numbers" else _change(at[-1][1]["margin"].effect, main),
            same_base=same["other_base"] if arm == "other_base" else True,
        )


def _dose(at: list[tuple[int | None, Metrics]]) -> list[DosePoint]:
    found = [DosePoint(updates=update, metrics=metrics) for update, metrics in at if update is not None]
    return found if len(found) > 1 else []


def _change(arm: Effect | None, main: Effect | None) -> Change | None:
    """The arm's effect minus the main arm's; both have one value for each unit, in one order."""
    if arm is None or main is None:
        return None
    differences = [a - b for a, b in zip(arm.per_unit, main.per_unit, strict=True)]
    if len(differences) < 2:
        return Change(estimate=differences[0], low=None, high=None, reason="one unit has no spread")
    from sublim.stats.intervals import (
        paired_t,  # scipy takes half a second to import, and a run without arms needs none
    )

    found = paired_t(differences, LEVEL)
    return Change(estimate=found.estimate, low=found.low, high=found.high)


def confusion_of(study: Study, results: Results) -> list[ConfusionCell]:
    """Every teacher's students against every target, after the last update; nothing for a single target."""
    targets = study.config.target
    last = study.main(targets[0]).updates[-1]
    cells: list[ConfusionCell] = []
    for students in targets if len(targets) > 1 else ():
        for target in targets:
            metrics = (
                results.main(target, last).metrics
                if target == students
                else results.of(target, "other_teacher", last, students)
            )
            margin = metrics["margin"]
            cells.append(ConfusionCell(students=students, target=target, effect=margin.effect, reason=margin.reason))
    return cells


def bases_of(run: Run, study: Study) -> dict[str, str]:
    """The digest of the weights that the teachers, the students and, where it was run, the other base's students
    start from."""
    digests = {name: base_identity(run.store.payload(artifact)) for name, artifact in study.trained.bases.items()}
    other = {"students of other_base": digests["other_base"]} if "other_base" in digests else {}
    return {"teachers": digests["base"], "students": digests["base"], **other}


def unchanged_notes(manifests: Mapping[str, Manifest], study: Study) -> list[str]:
    """A note for each arm that left all rows unchanged: its students are the main arm's."""
    untouched: dict[str, bool] = {}
    for each in study.trained.sets:
        if each.arm in DERIVED:
            changed = sum(manifests[rows.key].notes.get("changed", 0) for rows in each.rows)
            untouched[each.arm] = untouched.get(each.arm, True) and changed == 0
    return [
        f"{arm}: it changed no row, so its rows and students are the main arm's and it adds nothing."
        for arm, same in untouched.items()
        if same
    ]
