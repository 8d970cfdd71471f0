"""What the report says of diagnostics, read from their artifacts."""

from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean

from flows.pipeline.keys import BaseKey, TeacherKey
from flows.pipeline.matched import LossTable, first_block, matched_of
from flows.pipeline.plan import CONTROL
from flows.pipeline.report_arms import Results, interval
from flows.pipeline.study import Diagnosed, Study, read
from flows.runs.record import Run
from sublim.diagnostics.config import Divergence, Shifts, UnseenLoss, UnseenLosses
from sublim.report.diagnostics import DiagnosticsShown, DivergenceShown, LossShown, ShiftShown

NOT_FINITE = "the loss is not finite: the training diverged"


def diagnostics_of(run: Run, results: Results, study: Study, found: Diagnosed) -> DiagnosticsShown:
    """Everything the diagnostics say."""
    config = study.config
    losses = {
        key: read(UnseenLosses, run.store, artifact, "losses.json").losses for key, artifact in found.losses.items()
    }
    return DiagnosticsShown(
        losses=_losses_shown(study, losses) if losses else [],
        matched=[row for target in config.target if losses for row in matched_of(study, results, target, losses)],
        shift=[_shift(run, found, target) for target in config.target if "shift" in config.diagnostics],
        divergence=[_divergence(run, found, target) for target in config.target if "divergence" in config.diagnostics],
    )


def _losses_shown(study: Study, losses: LossTable) -> list[LossShown]:
    shown: list[LossShown] = []
    for each in study.trained.sets:
        who = "controls" if each.writer == CONTROL else f"students of {each.writer}"
        called = f"{who}, {each.arm}" if each.arm and each.arm != each.writer else who
        group = [losses[key] for key in each.keys(first_block(study), each.updates[-1])]
        shown += [
            _loss(called, rows, [one[rows] for one in group], losses[BaseKey(each.base)][rows])
            for rows in losses[BaseKey()]
        ]
    for key, found in losses.items():
        if isinstance(key, TeacherKey):
            shown += [_loss(f"teacher {key.target}", rows, [found[rows]], losses[BaseKey()][rows]) for rows in found]
    return shown


def _loss(model: str, rows: str, found: Sequence[UnseenLoss], base: UnseenLoss) -> LossShown:
    loss = _mean_of_all([each.nats_per_token for each in found])
    return LossShown(
        model=model,
        rows_of=rows,
        loss=loss,
        base=base.nats_per_token,
        digits=_mean_of_all([each.digit_nats for each in found]),
        base_digits=base.digit_nats,
        reason=NOT_FINITE if loss is None else None,
    )


def _mean_of_all(values: Sequence[float | None]) -> float | None:
    """The mean; None where one is missing."""
    known = [value for value in values if value is not None]
    return fmean(known) if len(known) == len(values) else None


def _shift(run: Run, found: Diagnosed, target: str) -> ShiftShown:
    if target not in found.shifts:
        return ShiftShown(target=target, student=None, control=None, reason=found.missing[f"shift {target}"])
    shifts = read(Shifts, run.store, found.shifts[target], "shift.json").students
    by_arm = {arm: [each for name, each in shifts.items() if name.startswith(f"{arm}/")] for arm in (target, CONTROL)}
    cosines = {arm: [each.cosine for each in group] for arm, group in by_arm.items()}
    pairs = [s - c for s, c in zip(cosines[target], cosines[CONTROL], strict=True) if s is not None and c is not None]
    kinds = {arm: _by_kind([each.modules for each in group]) for arm, group in by_arm.items()}
    lost = len(pairs) < len(by_arm[target])
    spread = None if lost else interval(pairs)
    return ShiftShown(
        target=target,
        student=_mean(cosines[target]),
        control=_mean(cosines[CONTROL]),
        difference=_mean(pairs),
        low=spread and spread.low,
        high=spread and spread.high,
        modules={kind: (value, kinds[CONTROL].get(kind)) for kind, value in kinds[target].items()},
        reason="a student or control did not move its weights" if lost else None,
    )


def _by_kind(modules: Sequence[dict[str, float | None]]) -> dict[str, float | None]:
    grouped: defaultdict[str, list[float | None]] = defaultdict(list)
    for each in modules:
        for name, cosine in each.items():
            grouped[name.rpartition(".")[2]].append(cosine)
    return {kind: _mean(values) for kind, values in sorted(grouped.items())}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _divergence(run: Run, found: Diagnosed, target: str) -> DivergenceShown:
    if target not in found.divergence:
        return DivergenceShown(target=target, share=None, reason=found.missing[f"divergence {target}"])
    compared = read(Divergence, run.store, found.divergence[target], "divergence.json")
    return DivergenceShown(
        target=target,
        tokens=compared.tokens,
        diverging=compared.diverging,
        share=compared.diverging / compared.tokens if compared.tokens else None,
        rows=compared.rows,
        reason=None if compared.tokens else "no row has the same tokens in both contexts",
    )
