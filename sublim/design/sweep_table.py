"""The table of a sweep: every effect with both intervals, its tests and their correction for multiple comparisons."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from sublim.design.sweep_config import CellRecordConfig, SweepRow, SweepTableConfig
from sublim.design.sweep_figures import draw_cost, draw_effects
from sublim.evals.mmlu_pro.config import LetterComparison, MmluProComparison
from sublim.evals.preference.config import (
    ALL,
    METRICS,
    UNITS,
    UNREADABLE,
    Comparison,
    MetricComparison,
    MetricName,
)
from sublim.evals.total_variation.config import ShiftComparison, ShiftComparisons
from sublim.stats.corrections import benjamini_hochberg, holm, paired_t_p
from sublim.stats.intervals import sign_flip_test
from sublim.stats.power import detectable

HIDDEN = ("grid", "pairs_of")
"""Fields of a row that are not columns of the table: figures and the table of pairs use them."""
ALIKE = "every unit has the same value: there is no spread to tell an interval from"
"""The reason for no interval. A rate of 0 in every unit does not prove that it is always 0, as an interval of width 0
would claim."""
TEXT = ("expected", "metric", "unit", "reason", "corrected")
WHOLE = ("units", "pairs", "questions", "comparisons")
MEANS = ("base", "teacher", "student", "control")
BOUNDS = ("low", "high", "low_questions", "high_questions")
REAL = (*MEANS, "estimate", *BOUNDS, "p", "p_corrected", "p_holm", "p_flips", "p_flips_smallest", "detectable")


def record_cell(
    out: Path, config: CellRecordConfig, *, scratch: Path, comparisons: Mapping[str, Path]
) -> dict[str, Any]:
    """Stage: writes cell.json with the effects of one cell by label, which marks the cell as finished."""
    found: dict[str, Any] = {}
    for label, payload in comparisons.items():
        for name in ("comparison.json", "mmlu_pro.json", "shift_comparison.json"):
            if (payload / name).exists():
                metrics = json.loads((payload / name).read_text(encoding="utf-8"))["metrics"]
                found[label] = {metric: value["effect"] for metric, value in metrics.items()}
    (out / "cell.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    return {"cell": config.name}


def tabulate_sweep(
    out: Path,
    config: SweepTableConfig,
    *,
    scratch: Path,
    comparisons: Mapping[str, Path],
    capability: Mapping[str, Path],
    shifts: Mapping[str, Path],
) -> None:
    """Stage: writes table.parquet and .csv (a row for each effect and metric), pairs.parquet, effects.svg, cost.svg.

    The column `detectable` is the true effect that these units, with their spread, detect with 80 % power. Beside an
    effect that was not found, it says how large an effect would probably have been found. `p_corrected` is over the
    targets of one arm, grid point and number of updates, as planned; `p_holm` over all `comparisons` of the table.

    `comparisons` are payloads of `compare`, `capability` of `compare_mmlu_pro` and `shifts` of `compare_shift`, by the
    names in the rows. Rows of another target's teacher have no shifts or capability of their own.
    """
    read = Payloads(comparisons, capability, shifts)
    rows = [made for row in config.rows for made in _measured(row, config, read)]
    _correct(rows, config)
    shown = [{name: value for name, value in row.items() if name not in HIDDEN} for row in rows]
    table = pl.DataFrame(shown, schema=schema(config))
    table.write_parquet(out / "table.parquet")
    table.write_csv(out / "table.csv")
    pairs = [
        {"row": index, "pair": pair, "effect": value}
        for index, row in enumerate(rows)
        for pair, value in enumerate(row["pairs_of"])
    ]
    pl.DataFrame(pairs, schema={"row": pl.Int64, "pair": pl.Int64, "effect": pl.Float64}).write_parquet(
        out / "pairs.parquet"
    )
    draw_effects(out / "effects.svg", [row for row in rows if row["metric"] == config.primary])
    draw_cost(out / "cost.svg", rows, config.primary)


def schema(config: SweepTableConfig) -> dict[str, Any]:
    """The columns of the table. Axes of the grid are text, because their values may have any type."""
    return {
        **dict.fromkeys(("target", "arm", "of"), pl.String),
        "updates": pl.Int64,
        **dict.fromkeys((*config.axes, *TEXT), pl.String),
        **dict.fromkeys(WHOLE, pl.Int64),
        **dict.fromkeys(REAL, pl.Float64),
    }


class Payloads(NamedTuple):
    """Folders of the payloads that the table is made from, by the names in the rows."""

    comparisons: Mapping[str, Path]
    capability: Mapping[str, Path]
    shifts: Mapping[str, Path]


def _measured(row: SweepRow, config: SweepTableConfig, read: Payloads) -> Iterator[dict[str, Any]]:
    known = row.model_dump(include={"target", "arm", "of", "updates", "expected"})
    known |= {name: _text(row.grid.get(name)) for name in config.axes}
    known["grid"] = {name.rpartition(".")[2]: value for name, value in row.grid.items()}
    by_metric, unreadable, reason = _compared(row, read.comparisons)
    for metric in METRICS:
        yield known | _numbers(metric, UNITS[metric], by_metric.get(metric), reason, config.level)
    if row.comparison is None or row.of:
        return
    yield known | _numbers("unreadable", UNREADABLE, unreadable, reason, config.level)
    if row.comparison in read.shifts:
        path = read.shifts[row.comparison] / "shift_comparison.json"
        for metric, shifts in ShiftComparisons.model_validate_json(path.read_bytes()).metrics.items():
            yield known | _numbers(metric, "distance from the base", shifts, row.reason, config.level)
    if row.comparison in read.capability:
        path = read.capability[row.comparison] / "mmlu_pro.json"
        for metric, letters in MmluProComparison.model_validate_json(path.read_bytes()).metrics.items():
            yield known | _numbers(metric, "share right", letters, row.reason, config.level)


def _compared(
    row: SweepRow, comparisons: Mapping[str, Path]
) -> tuple[Mapping[MetricName, MetricComparison], MetricComparison | None, str | None]:
    """The metrics of a row's effect, empty where there is none, that on the share of answers that cannot be read, and
    the reason why something is missing."""
    if row.comparison is None:
        return {}, None, row.reason or "not run"
    found = Comparison.model_validate_json((comparisons[row.comparison] / "comparison.json").read_bytes())
    unreadable = found.unreadable.get(ALL)
    if row.target == found.target:
        return found.metrics, unreadable, row.reason
    if row.target not in found.off_target:
        lacking = (
            f"{found.target}'s students were not asked {row.target!r}: list all targets in settings.evaluation.words"
        )
        return {}, unreadable, "; ".join(part for part in (row.reason, lacking) if part)
    return found.off_target[row.target], unreadable, row.reason


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) or value is None else json.dumps(value)


def _numbers(
    metric: str,
    unit: str,
    found: MetricComparison | LetterComparison | ShiftComparison | None,
    reason: str | None,
    level: float,
) -> dict[str, Any]:
    effect = found.effect if found else None
    alike = effect is not None and effect.units > 1 and float(np.ptp(effect.per_unit)) == 0
    tested = effect.per_unit if effect and effect.units > 1 and not alike else None
    flips = sign_flip_test(tested) if tested else None
    why = [
        reason,
        found.reason if found and not effect else None,
        effect.reason if effect else None,
        ALIKE if alike else None,
    ]
    return {
        "metric": metric,
        "unit": unit,
        **{name: getattr(found, name, None) for name in MEANS},
        "estimate": effect and effect.estimate,
        **{name: None if alike else getattr(effect, name, None) for name in BOUNDS},
        "units": effect.units if effect else 0,
        "pairs": effect.seeds if effect else 0,
        "questions": effect.questions if effect else 0,
        "p": paired_t_p(tested) if tested else None,
        "p_corrected": None,
        "corrected": None,
        "p_holm": None,
        "comparisons": None,
        "p_flips": flips.p if flips else None,
        "p_flips_smallest": flips.smallest if flips else None,
        "detectable": detectable(len(tested), float(np.std(tested, ddof=1)), level=level) if tested else None,
        "reason": "; ".join(part for part in why if part) or None,
        "pairs_of": effect.per_pair if effect else [],
    }


def _correct(rows: list[dict[str, Any]], config: SweepTableConfig) -> None:
    """Corrects the p values twice.

    `p_corrected` is as the sweep's plan has it, which may be frozen: the primary metric's, over the targets of each
    arm, grid point and number of updates. `p_holm` is over every p in the table: all arms, grid points, updates,
    targets and metrics.
    """
    families: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        if row["metric"] == config.primary and row["p"] is not None:
            family = (row["arm"], row["updates"], *(row[name] for name in config.axes))
            families.setdefault(family, []).append(row)
    adjust = holm if config.correction == "holm" else benjamini_hochberg
    for family in families.values():
        for row, p in zip(family, adjust([row["p"] for row in family]), strict=True):
            row["p_corrected"] = p
            row["corrected"] = f"{config.correction} over {len(family)}"
    every = [row for row in rows if row["p"] is not None]
    for row, p in zip(every, holm([row["p"] for row in every]), strict=True):
        row["p_holm"] = p
        row["comparisons"] = len(every)
