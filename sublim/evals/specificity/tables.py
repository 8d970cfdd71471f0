"""Total, generic and specific effects, γ and placebo ranks, from the values of the students of every teacher."""

from collections.abc import Sequence
from typing import NamedTuple, cast

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from sublim.evals.effect_config import Effect
from sublim.evals.effects import Units, paired_effect
from sublim.evals.specificity.config import CompareTargetsConfig, PlaceboRank, TargetEffects, TargetTable
from sublim.evals.specificity.permutation import permute_teachers


class Values(NamedTuple):
    """One metric of all students and controls; NaN where it has no value."""

    students: Float[ndarray, "k s w q"]
    """By target of the teacher, unit (a seed of a block), listed word and question."""
    controls: Float[ndarray, "k s w q"]
    """The same for the controls of each target's students; alike for all targets where they share them."""

    @property
    def used(self) -> Bool[ndarray, " q"]:
        """The questions with a value for every model and word, so that all tables are about the same ones."""
        every = np.concatenate([self.students, self.controls])
        return cast(Bool[ndarray, " q"], np.isfinite(every).all(axis=(0, 1, 2)))


def table_of(values: Values, units: Units, config: CompareTargetsConfig) -> TargetTable:
    """Every effect of one metric. At least one question must be used."""
    used, columns = values.used, [config.words.index(target) for target in config.targets]

    def effect(differences: Float[ndarray, "s q"]) -> Effect:
        return paired_effect(differences, used, units, config.compare)

    specific = [own_minus_others(values.students, i, column) for i, column in enumerate(columns)]
    found: dict[str, TargetEffects] = {}
    for i, (target, column) in enumerate(zip(config.targets, columns, strict=True)):
        moves = values.students[i] - values.controls[i]
        total = moves[:, column]
        found[target] = TargetEffects(
            total=effect(total),
            generic=effect(total - specific[i]),
            specific=effect(specific[i]),
            rank_total=rank_of(column, list(by_unit(moves, used, units).mean(axis=0))),
            rank_specific=_specific_rank(values.students, i, columns, used, units),
        )
    moved = np.stack([by_unit(each, used, units).mean(axis=0) for each in values.students - values.controls])
    blocks = units.members if units.kind == "block" else [[pair for members in units.members for pair in members]]
    raw = values.students[:, :, columns][..., used].mean(axis=-1)  # students by unit by target
    return TargetTable(
        targets=found,
        gamma=effect(np.mean(specific, axis=0)),
        permutation=permute_teachers(
            np.stack([raw[:, block].mean(axis=1) for block in blocks]),
            draws=config.permutations,
            seed=config.compare.seed,
        ),
        moved={
            target: dict(zip(config.words, row, strict=True))
            for target, row in zip(config.targets, moved.tolist(), strict=True)
        },
        table={
            target: dict(zip(config.targets, row, strict=True))
            for target, row in zip(config.targets, moved[:, columns].tolist(), strict=True)
        },
    )


def own_minus_others(
    students: Float[ndarray, "k s w q"], own: int, column: int, without: Sequence[int] = ()
) -> Float[ndarray, "s q"]:
    """One target's students minus the mean of the other targets' for one word; those in `without` are left out."""
    others = [i for i in range(len(students)) if i != own and i not in without]
    return students[own, :, column] - students[others, :, column].mean(axis=0)


def by_unit(differences: Float[ndarray, "s w q"], used: Bool[ndarray, " q"], units: Units) -> Float[ndarray, "u w"]:
    """Means over the used questions, and over the pairs of every unit."""
    means = differences[..., used].mean(axis=-1)
    return np.stack([means[members].mean(axis=0) for members in units.members])


def rank_of(column: int, moved: Sequence[float]) -> PlaceboRank:
    """The rank of one word by the size of its movement among those of all words."""
    sizes = np.abs(moved)
    return PlaceboRank(rank=int((sizes >= sizes[column]).sum()), of=len(sizes))


def _specific_rank(
    students: Float[ndarray, "k s w q"], own: int, columns: Sequence[int], used: Bool[ndarray, " q"], units: Units
) -> PlaceboRank:
    """The target's rank by own minus others, each word judged only by teachers that do not prefer it.

    A teacher that prefers the ranked word would move it by itself, and the word would be no placebo.
    """
    moved: dict[int, float] = {}
    for column in range(students.shape[2]):
        preferring = [i for i, each in enumerate(columns) if each == column and i != own]
        if len(students) - 1 > len(preferring):
            differences = own_minus_others(students, own, column, preferring)
            moved[column] = float(by_unit(differences[:, None], used, units).mean())
    return rank_of([*moved].index(columns[own]), [*moved.values()])
