"""A study in which no trial is lost or made twice, no matter how many workers it has and which of them die.

A slot is the number of a trial, which its retries keep. The draws of a slot are seeded by the study's seed and the slot
alone. With one worker, a study that was interrupted or started again therefore proposes the same parameters as an
uninterrupted one. With several workers the proposals also depend on who finishes first; they are recorded, but cannot
be reproduced.
"""

import copy
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
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
from sublim.search.storage import Storage, asking, beating

log = logging.getLogger(__name__)
STATES: dict[TrialState, Literal["complete", "pruned", "failed", "running"]] = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}


class Unmeasurable(Exception):
    """Raised for a trial whose objective has no value; the message gives the reason."""


class Measured(NamedTuple):
    """Result of a trial."""

    values: Sequence[float]
    """Values of the objectives, in their order."""
    notes: dict[str, Any]
    """Further results, kept with the trial."""


class Asked(NamedTuple):
    """A trial that a worker has taken and is to make."""

    trial: Trial
    slot: int
    """Number of the trial in the study, which its retries keep."""
    params: dict[str, Value]


Measure = Callable[[Asked], Measured]


@dataclass(frozen=True)
class Search:
    """An open study, as one worker sees it."""

    config: StudyConfig
    storage: Storage
    study: Study

    def ask(self) -> Asked | None:
        """Takes the next trial: one left by a dead worker, or a new one. None if all have been taken."""
        with asking(self.storage, self.config.name):
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
            # Set last: under this lock, a running trial without an owner belongs to a worker that died before here.
            trial.set_user_attr("owner", list(Owner.this()))
        kill_point(f"search:asked-{slot}")
        return Asked(trial, slot, params)

    def _next_slot(self) -> int | None:
        """The slot of the trial that Optuna proposes next; None if all have been taken."""
        trials = self.study.get_trials(deepcopy=False)
        taken = {slot_of(trial) for trial in trials}
        free = next((slot for slot in range(self.config.trials) if slot not in taken), None)
        for trial in trials:
            if trial.state == TrialState.WAITING:
                slot = slot_of(trial)
                if slot is not None or free is not None:
                    return free if slot is None else slot
                # Somebody queued a trial although none is left. Optuna would propose it before any other.
                self.storage.set_trial_state_values(trial._trial_id, state=TrialState.FAIL)  # pyright: ignore[reportPrivateUsage]
                log.warning("a trial queued by hand is not made, since all %d trials are taken", self.config.trials)
        return free

    def make(self, asked: Asked, measure: Measure) -> None:
        """Measures a trial and reports the result to the study. After an unexpected error the trial is made again."""
        trial_id = asked.trial._trial_id  # pyright: ignore[reportPrivateUsage]
        with beating(self.storage, trial_id, self.config.heartbeat):
            try:
                measured = measure(asked)
                if reason := not_finite(measured.values):
                    raise Unmeasurable(reason)
            except optuna.TrialPruned:
                self._tell(asked, TrialState.PRUNED, {})
            except Unmeasurable as error:
                log.warning("trial %d failed: %s", asked.slot, error)
                self._tell(asked, TrialState.FAIL, {"reason": str(error)})
            except BaseException as error:
                # Stopping on purpose does not count as a death. Any other error may be caused by the trial itself.
                on_purpose = isinstance(error, KeyboardInterrupt | SystemExit)
                self._tell(asked, TrialState.FAIL, {"stopped": True} if on_purpose else {})
                raise
            else:
                self._tell(asked, TrialState.COMPLETE, measured.notes, list(measured.values))

    def _tell(self, asked: Asked, state: TrialState, notes: dict[str, Any], values: list[float] | None = None) -> None:
        kill_point(f"search:measured-{asked.slot}")
        try:
            for name, value in notes.items():
                asked.trial.set_user_attr(name, value)
            self.study.tell(asked.trial, values, state, skip_if_finished=True)
        except UpdateFinishedTrialError:
            log.warning("trial %d had no heartbeat for so long that another worker took it over", asked.slot)
        kill_point(f"search:told-{asked.slot}")

    def _recover(self) -> None:
        """Marks the attempts of dead workers as failed, and queues their trials to be made again."""
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
                reason = f"{deaths} workers died during it"
                gone = {"slot": slot, "reason": reason}
                self.study.add_trial(optuna.create_trial(state=TrialState.FAIL, user_attrs=gone))
                log.warning("trial %d is given up: %s", slot, reason)
            else:
                log.info("trial %d was left unfinished and is made again", slot)
                RetryHeartbeatStaleTrialCallback()(self.study, self._retry(last, slot))

    def _retry(self, trial: FrozenTrial, slot: int) -> FrozenTrial:
        """A new attempt with the parameters of `trial`, if it had drawn all of them, and without its results."""
        retry = copy.deepcopy(trial)
        retry.user_attrs = {"slot": slot}
        if len(trial.params) < len(self.config.space):
            retry.params, retry.distributions = {}, {}
        kept = ("failed_trial", "retry_history", "fixed_params")
        retry.system_attrs = {name: value for name, value in trial.system_attrs.items() if name in kept}
        return retry

    def unfinished(self) -> int:
        """The number of trials that have not ended."""
        return self.config.trials - sum(record.state != "running" for record in self.records())

    def records(self) -> list[TrialRecord]:
        """The trials by slot, each with the state of its last attempt."""
        by_slot = sorted(attempts_by_slot(self.study).items())
        return [recorded(slot, attempts) for slot, attempts in by_slot if slot < self.config.trials]


def recorded(slot: int, attempts: Sequence[FrozenTrial]) -> TrialRecord:
    """A trial in the state of its last attempt."""
    last = attempts[-1]
    state, values = STATES.get(last.state, "running"), tuple(last.values) if last.values else None
    reason = last.user_attrs.get("reason")
    if values is not None and (infinite := not_finite(values)):  # reported by other code than `make`
        state, reason, values = "failed", infinite, None
    return TrialRecord(
        number=slot,
        state="running" if state == "failed" and reason is None else state,
        params=last.params,
        values=values,
        intermediate={str(step): value for step, value in last.intermediate_values.items() if np.isfinite(value)},
        reason=reason,
        retried=len(attempts) - 1,
        notes={name: value for name, value in last.user_attrs.items() if name not in ("slot", "owner", "reason")},
    )


def attempts_by_slot(study: Study) -> dict[int, list[FrozenTrial]]:
    """All attempts at each trial, in order. An attempt whose worker died before it had a slot is left out."""
    found = defaultdict[int, list[FrozenTrial]](list)
    for trial in study.get_trials(deepcopy=False):
        if (slot := slot_of(trial)) is not None:
            found[slot].append(trial)
    return found


def slot_of(trial: FrozenTrial) -> int | None:
    """The slot of a trial; None if it was added to the study by hand."""
    slot = trial.user_attrs.get("slot")
    return slot if type(slot) is int else None


def not_finite(values: Sequence[float]) -> str | None:
    """The reason why a trial with these values failed; None if all of them are numbers."""
    return None if np.isfinite(values).all() else f"the objective came out as {', '.join(map(str, values))}"


def make_sampler(config: SamplerConfig, slot: int) -> BaseSampler:
    """A sampler for one trial, seeded by the study's seed and the trial's slot."""
    seed = int(np.random.SeedSequence([config.seed, slot]).generate_state(1)[0])
    if config.kind == "random":
        return RandomSampler(seed=seed)
    return TPESampler(seed=seed, n_startup_trials=config.startup)


def work(search: Search, measure: Measure, *, seconds: float | None = None, poll: float = 2.0) -> bool:
    """Makes trials until all have ended, including those of other workers, or until `seconds` are over.

    `poll` is the number of seconds to wait while only other workers' trials are left. Returns whether all trials ended.
    """
    deadline = None if seconds is None else time.monotonic() + seconds
    while deadline is None or time.monotonic() < deadline:
        asked = search.ask()
        if asked is not None:
            params = ", ".join(f"{name} {shown(value)}" for name, value in asked.params.items())
            log.info("trial %d of %d: %s", asked.slot, search.config.trials, params)
            search.make(asked, measure)
        elif search.unfinished() == 0:
            return True
        else:
            time.sleep(poll)
    return search.unfinished() == 0


def shown(value: Value) -> str:
    """A parameter as text."""
    return f"{value:.4g}" if isinstance(value, float) else "-" if value is None else str(value)
