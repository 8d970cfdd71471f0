"""The cost in capability: MMLU-Pro accuracy of students compared with their paired controls, question by question."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from sublim.core.errors import UserError
from sublim.evals.effect_config import CompareConfig
from sublim.evals.effects import Arm, Units, known_mean, paired_effect, read_study, units_of
from sublim.evals.mmlu_pro.config import (
    LETTER_METRICS,
    AgainstBase,
    CategoryEffect,
    LetterComparison,
    LetterMetric,
    MmluProComparison,
    MmluProScores,
)
from sublim.stats.intervals import paired_shares, paired_t

Study = dict[Arm, list[MmluProScores]]
UNREAD = "no question could be read for every student and control"


def compare_mmlu_pro(
    out: Path,
    config: CompareConfig,
    *,
    scratch: Path,
    students: list[Path],
    controls: list[Path],
    base: Path,
    teacher: list[Path] | None = None,
) -> None:
    """Stage: writes mmlu_pro.json (`MmluProComparison`) from payloads of score_mmlu_pro.

    Student i is paired with control i.
    """
    study = read_study(MmluProScores, base, teacher or [], students, controls)
    first = study["base"][0]
    if any(scores.questions != first.questions for arm in study.values() for scores in arm):
        raise UserError("MMLU-Pro scores of different questions cannot be compared: ask all models the same")
    units = units_of(len(students), len(controls), config.blocks)
    compared = MmluProComparison(
        chance=first.chance,
        questions=len(first.questions),
        about_units=units.sentence,
        metrics={name: _compared(study, name, units, config) for name in LETTER_METRICS},
    )
    (out / "mmlu_pro.json").write_text(compared.model_dump_json(indent=1), encoding="utf-8")


def _compared(study: Study, name: LetterMetric, units: Units, config: CompareConfig) -> LetterComparison:
    first = study["base"][0]
    values = {arm: _matrix(models, name, len(first.questions)) for arm, models in study.items()}
    differences = values["student"] - values["control"]
    used = cast(Bool[ndarray, " q"], np.isfinite(differences).all(axis=0))
    there = {arm: known_mean(matrix[:, used]) for arm, matrix in values.items()}
    reason = None
    if not used.any():
        asked = all(models.metrics[name] is not None for arm in ("student", "control") for models in study[arm])
        reason = UNREAD if asked else "no letters were generated"
    return LetterComparison(
        **there,
        effect=paired_effect(differences, used, units, config) if used.any() else None,
        by_category=_by_category(differences, used, units, config, first.categories) if used.any() else {},
        against_base=_against_base(values, config.level),
        reason=reason,
    )


def _matrix(models: Sequence[MmluProScores], name: LetterMetric, questions: int) -> Float[ndarray, "s q"]:
    """Models by questions: 1 for a right answer, 0 for a wrong one, NaN if no letter could be read."""
    found = [scores.metrics[name] for scores in models]
    rows = [each.per_question if each else [None] * questions for each in found]
    return np.array(rows, dtype=float).reshape(len(rows), questions)


def _by_category(
    differences: Float[ndarray, "s q"],
    used: Bool[ndarray, " q"],
    units: Units,
    config: CompareConfig,
    categories: Sequence[str],
) -> dict[str, CategoryEffect]:
    found: dict[str, CategoryEffect] = {}
    labels = np.array(categories)
    for name in sorted(set(categories)):
        chosen = used & (labels == name)
        if not chosen.any():
            found[name] = CategoryEffect(estimate=None, low=None, high=None, questions=0, reason=UNREAD)
            continue
        means = np.array([differences[pairs][:, chosen].mean() for pairs in units.members])
        interval = paired_t(means, config.level) if len(means) > 1 else None
        found[name] = CategoryEffect(
            estimate=float(means.mean()),
            low=interval.low if interval else None,
            high=interval.high if interval else None,
            questions=int(chosen.sum()),
            reason=None if interval else "one unit has no spread",
        )
    return found


def _against_base(values: dict[str, Float[ndarray, "s q"]], level: float) -> list[AgainstBase]:
    base = values["base"][0]
    found: list[AgainstBase] = []
    for arm in ("teacher", "student", "control"):
        for number, row in enumerate(values[arm], start=1):
            both = np.isfinite(row) & np.isfinite(base)
            if both.any():
                found.append(against(f"{arm} {number}", row[both] == 1, base[both] == 1, level))
    return found


def against(model: str, right: Bool[ndarray, " q"], base: Bool[ndarray, " q"], level: float) -> AgainstBase:
    """One model compared with the base on the questions for which both answers could be read."""
    shares = paired_shares(right, base, level)
    return AgainstBase(
        model=model,
        estimate=shares.difference.estimate,
        low=shares.difference.low,
        high=shares.difference.high,
        gained=shares.gained,
        lost=shares.lost,
        p=shares.p,
        questions=shares.difference.n,
    )
