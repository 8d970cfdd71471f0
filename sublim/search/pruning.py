"""Pruning, which stops trials early: Optuna's pruners, which here ignore attempts whose workers died."""

import copy
from collections.abc import Container
from typing import assert_never

from optuna import Study
from optuna.pruners import BasePruner, HyperbandPruner, NopPruner, SuccessiveHalvingPruner
from optuna.trial import FrozenTrial, TrialState

from sublim.search.config import Halving, Hyperband, Pruning

NO_BRACKET = -1


def rungs(pruning: Pruning | None, updates: int) -> list[int]:
    """The rungs: the updates before the last one at which a trial is judged."""
    found: list[int] = []
    if pruning is not None:
        rung = pruning.first
        while rung < updates:
            found.append(rung)
            rung *= pruning.factor
    return found


def make_pruner(pruning: Pruning | None, updates: int, study: Study) -> BasePruner:
    """Optuna's pruner for a study whose trials make `updates` updates."""
    match pruning:
        case None:
            return NopPruner()
        case Halving():
            return LivingHalving(min_resource=pruning.first, reduction_factor=pruning.factor)
        case Hyperband():
            pruner = SlotHyperband(min_resource=pruning.first, max_resource=updates, reduction_factor=pruning.factor)
            # Otherwise it has one bracket until it first prunes, and a restarted study would draw other parameters.
            pruner._try_initialization(study)  # pyright: ignore[reportPrivateUsage]
            return pruner
        case _:
            assert_never(pruning)


class Living(Study):
    """A study without failed attempts: the losses of a dead worker's attempt must not count beside its retry's."""

    def get_trials(self, deepcopy: bool = True, states: Container[TrialState] | None = None) -> list[FrozenTrial]:
        """The study's trials except those that failed."""
        trials = super().get_trials(deepcopy, states)
        return [trial for trial in trials if trial.state != TrialState.FAIL]


class LivingHalving(SuccessiveHalvingPruner):
    """Successive halving among the trials that have not failed."""

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether `trial` is to be stopped."""
        living = Living(study.study_name, study._storage)  # pyright: ignore[reportPrivateUsage]
        return super().prune(living, trial)


class SlotHyperband(HyperbandPruner):
    """Hyperband that assigns brackets by slot: a retry stays in its bracket, and a failed attempt belongs to none."""

    def _get_bracket_id(self, study: Study, trial: FrozenTrial) -> int:
        if trial.state == TrialState.FAIL:
            return NO_BRACKET
        placed = copy.copy(trial)
        placed.number = trial.user_attrs.get("slot", trial.number)
        return super()._get_bracket_id(study, placed)
