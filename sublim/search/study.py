"""A study whose trials are neither lost nor done twice, however many workers it has and whichever of them die.

A trial has a place, its slot, which its retries keep. The draws of a slot are seeded by the study's seed and the slot
alone: with one worker a study that was killed, or begun anew, proposes what an undisturbed one would have. With
several workers the proposals also depend on who finished first, and are recorded, not repeatable.
"""

import copy
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import optuna
from optuna import Study, Trial
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import RetryHeartbeatStaleTrialCallback, fail_stale_trials
from optuna.trial import FrozenTrial, TrialState

from sublim.core.kill_points import kill_point
from sublim.core.owner import Owner
from sublim.search.config import SamplerConfig, StudyConfig, TrialRecord, Value
from sublim.search.space import suggest
from sublim.search.storage import Storage, asking, beating, quiet

log = logging.getLogger(__name__)
STATES: dict[TrialState, Literal["complete", "pruned", "failed", "running"]] = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}


class Unmeasurable(Exception):
    """A trial whose objective has no value; the message says why."""


class Measured(NamedTuple):
    """What came of a trial."""

    values: Sequence[float]
    """In the order of the objectives."""
    notes: dict[str, Any]


class Asked(NamedTuple):
    """A trial to be made."""

    trial: Trial
    slot: int
    params: dict[str, Value]


Measure = Callable[[Asked], Measured]


@dataclass(frozen=True)
class Search:
    """An open study."""

    config: StudyConfig
    storage: Storage
    study: Study

    def ask(self) -> Asked | None:
        """The next trial: one that a dead worker left, or a new one; None where all have been taken."""
        with asking(self.storage, self.config.name), quiet():
            self._recover()
            slot = self._next_slot()
            if slot is None:
                return None
            self.study.sampler = make_sampler(self.config.sampler, slot)
            trial = self.study.ask()
            kill_point(f"search:taking-{slot}")
            trial.set_user_attr("slot", slot)
            self.storage.record_heartbeat(trial._trial_id)  # pyright: ignore[reportPrivateUsage]
            params = suggest(trial, self.config.space)
            # Last: under this lock a running trial without an owner is one whose worker died before here.
            trial.set_user_attr("owner", list(Owner.this()))
        kill_point(f"search:asked-{slot}")
        return Asked(trial, slot, params)

    def _next_slot(self) -> int | None:
        """The slot of the trial that Optuna gives next; None where all have been taken."""
        trials = self.study.get_trials(deepcopy=False)
        taken = {slot_of(trial) for trial in trials}
        free = next((slot for slot in range(self.config.trials) if slot not in taken), None)
        for trial in trials:
            if trial.state == TrialState.WAITING:
                slot = slot_of(trial)
                if slot is not None or free is not None:
                    return free if slot is None else slot
                # Queued by hand when no trial is left: Optuna would give it before any other.
                self.storage.set_trial_state_values(trial._trial_id, state=TrialState.FAIL)  # pyright: ignore[reportPrivateUsage]
                log.warning("the trial that was queued by hand is not made: all %d are taken", self.config.trials)
        return free

    def make(self, asked: Asked, measure: Measure) -> None:
        """Measures a trial and tells the study; whatever stops the measurement puts the trial back."""
        trial_id = asked.trial._trial_id  # pyright: ignore[reportPrivateUsage]
        with beating(self.storage, trial_id, self.config.heartbeat):
            try:
                measured = finite(measure(asked))
            except optuna.TrialPruned:
                self._tell(asked, state=TrialState.PRUNED)
            except Unmeasurable as error:
                log.warning("trial %d failed: %s", asked.slot, error)
                self._tell(asked, notes={"reason": str(error)}, state=TrialState.FAIL)
            except BaseException as error:
                # Stopped on purpose it does not count as a death; any other way it may be the trial's own fault.
                on_purpose = isinstance(error, KeyboardInterrupt | SystemExit)
                self._tell(asked, notes={"stopped": True} if on_purpose else {}, state=TrialState.FAIL)
                raise
            else:
                self._tell(asked, notes=measured.notes, values=list(measured.values))

    def _tell(
        self,
        asked: Asked,
        *,
        notes: Mapping[str, Any] | None = None,
        values: list[float] | None = None,
        state: TrialState | None = None,
    ) -> None:
        kill_point(f"search:measured-{asked.slot}")
        try:
            for name, value in (notes or {}).items():
                asked.trial.set_user_attr(name, value)
            self.study.tell(asked.trial, values, state, skip_if_finished=True)
        except UpdateFinishedTrialError:
            log.warning("trial %d took so long without a sign of life that another worker took it over", asked.slot)
        kill_point(f"search:told-{asked.slot}")

    def _recover(self) -> None:
        """Fails the trials of dead workers and puts each up for another; what died in between is put up too."""
        fail_stale_trials(self.study)
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            owner = trial.user_attrs.get("owner")
            if owner is None or Owner(*owner).is_dead():
                self.study.tell(trial.number, state=TrialState.FAIL)
        for slot, attempts in attempts_by_slot(self.study).items():
            last = attempts[-1]
            if last.state != TrialState.FAIL or "reason" in last.user_attrs:
                continue
            deaths = sum("stopped" not in trial.user_attrs for trial in attempts)
            if deaths >= self.config.attempts:
                self._give_up(slot, deaths)
            else:
                log.info("trial %d was left unfinished and is taken up again", slot)
                RetryHeartbeatStaleTrialCallback()(self.study, self._retry(last, slot))

    def _retry(self, trial: FrozenTrial, slot: int) -> FrozenTrial:
        """The attempt as it is to begin again: its parameters, if it had drawn all, and nothing that it reached."""
        retry = copy.deepcopy(trial)
        retry.user_attrs = {"slot": slot}
        if len(trial.params) < len(self.config.space):
            retry.params, retry.distributions = {}, {}
        kept = ("failed_trial", "retry_history", "fixed_params")
        retry.system_attrs = {name: value for name, value in trial.system_attrs.items() if name in kept}
        return retry

    def _give_up(self, slot: int, deaths: int) -> None:
        reason = f"{deaths} workers died of it"
        gone = optuna.create_trial(state=TrialState.FAIL, user_attrs={"slot": slot, "reason": reason})
        self.study.add_trial(gone)
        log.warning("trial %d is given up: %s", slot, reason)

    def unfinished(self) -> int:
        """Trials that have no end yet."""
        return self.config.trials - sum(record.state != "running" for record in self.records())

    def records(self) -> list[TrialRecord]:
        """The trials by slot, each as its last attempt stands."""
        found: list[TrialRecord] = []
        for slot, attempts in sorted(attempts_by_slot(self.study).items()):
            last = attempts[-1]
            state = STATES.get(last.state, "running")
            reason, values = last.user_attrs.get("reason"), tuple(last.values) if last.values else None
            if slot >= self.config.trials:
                continue
            if values is not None and not np.isfinite(values).all():  # told by something else than `make`
                state, reason, values = "failed", f"the objective came out as {', '.join(map(str, values))}", None
            notes = {name: value for name, value in last.user_attrs.items() if name not in ("slot", "owner", "reason")}
            found.append(
                TrialRecord(
                    number=slot,
                    state="running" if state == "failed" and reason is None else state,
                    params=last.params,
                    values=values,
                    intermediate={
                        str(step): value for step, value in last.intermediate_values.items() if np.isfinite(value)
                    },
                    reason=reason,
                    retried=len(attempts) - 1,
                    notes=notes,
                )
            )
        return found


def attempts_by_slot(study: Study) -> dict[int, list[FrozenTrial]]:
    """All attempts at each trial, in order. One that died before it had a slot took none."""
    found: dict[int, list[FrozenTrial]] = {}
    for trial in study.get_trials(deepcopy=False):
        slot = slot_of(trial)
        if slot is not None:
            found.setdefault(slot, []).append(trial)
    return found


def slot_of(trial: FrozenTrial) -> int | None:
    """The slot of a trial of ours; None for one that came into the study by hand."""
    slot = trial.user_attrs.get("slot")
    return slot if type(slot) is int else None


def finite(measured: Measured) -> Measured:
    """`measured`, if all its values are numbers; what is not never becomes a value."""
    if not all(np.isfinite(value) for value in measured.values):
        raise Unmeasurable(f"the objective came out as {', '.join(map(str, measured.values))}")
    return measured


def make_sampler(config: SamplerConfig, slot: int) -> BaseSampler:
    """A sampler for one trial, seeded by the study's seed and the trial's slot."""
    seed = int(np.random.SeedSequence([config.seed, slot]).generate_state(1)[0])
    if config.kind == "random":
        return RandomSampler(seed=seed)
    return TPESampler(seed=seed, n_startup_trials=config.startup)


def work(search: Search, measure: Measure, *, seconds: float | None = None, poll: float = 2.0) -> bool:
    """Makes trials until every one has its end, those of other workers included, or the time is over.

    Returns whether the study is finished.
    """
    deadline = None if seconds is None else time.monotonic() + seconds
    while deadline is None or time.monotonic() < deadline:
        asked = search.ask()
        if asked is not None:
            log.info("trial %d of %d: %s", asked.slot, search.config.trials, shown(asked.params))
            search.make(asked, measure)
        elif search.unfinished() == 0:
            return True
        else:
            time.sleep(poll)
    return search.unfinished() == 0


def shown(params: Mapping[str, Value]) -> str:
    """Parameters for a log line."""
    return ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in params.items()
    )
