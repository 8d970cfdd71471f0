"""The effect on answers in general: how much further students are from the base than controls, by total variation."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from sublim.evals.effect_config import CompareConfig
from sublim.evals.effects import Units, known_mean, paired_effect, units_of
from sublim.evals.total_variation.config import SHIFTS, CompareShiftConfig, ShiftComparison, ShiftComparisons, ShiftName
from sublim.evals.total_variation.distance import distances

Distances = dict[ShiftName, Float[ndarray, " q"]]


def compare_shift(
    out: Path, config: CompareShiftConfig, *, scratch: Path, students: list[Path], controls: list[Path], base: Path
) -> None:
    """Stage: writes shift_comparison.json (`ShiftComparisons`) from payloads of `ask`; student i is paired with control
    i."""
    units = units_of(len(students), len(controls), config.compare.blocks)
    from_base = [[distances(model, base, config.words) for model in arm] for arm in (students, controls)]
    apart = [distances(student, own, config.words) for student, own in zip(students, controls, strict=True)]
    compared = ShiftComparisons(
        about_units=units.sentence,
        metrics={name: _compared(name, from_base, apart, units, config.compare) for name in SHIFTS},
    )
    (out / "shift_comparison.json").write_text(compared.model_dump_json(indent=1), encoding="utf-8")


def _compared(
    name: ShiftName,
    arms: Sequence[Sequence[Distances]],
    apart: Sequence[Distances],
    units: Units,
    config: CompareConfig,
) -> ShiftComparison:
    student, control = (np.stack([model[name] for model in arm]) for arm in arms)
    used = cast(Bool[ndarray, " q"], np.isfinite(student - control).all(axis=0))
    if not used.any():
        reason = "no answers were sampled (samples = 0)" if name == "tv_sampled" else "log-probs are not finite"
        return ShiftComparison(student=None, control=None, between=None, effect=None, reason=reason)
    between = np.stack([model[name] for model in apart])[:, used]
    return ShiftComparison(
        student=float(student[:, used].mean()),
        control=float(control[:, used].mean()),
        between=known_mean(between),
        effect=paired_effect(student - control, used, units, config),
    )
