"""Summarises probes over seeds: means with intervals over the tested prompts, and selectivity."""

from collections.abc import Mapping, Sequence

import numpy as np

from sublim.probes.config import ProbesConfig, ProbeSummaries, ProbeSummary
from sublim.probes.metrics import METRICS, Judged, metrics
from sublim.stats.intervals import clustered_share, paired_t

ABOUT = (
    "95 % over prompts (each with all its answers), for probes fitted as these were; seeds are averaged, and the draw "
    "of other training rows is not covered: see the spread over seeds"
)


def summarise(grouped: Mapping[tuple[str, int], Mapping[bool, list[Judged]]], config: ProbesConfig) -> ProbeSummaries:
    """Every metric of every target and layer."""
    rows = list[ProbeSummary]()
    for (target, layer), by_labels in sorted(grouped.items()):
        rows += _rows(target, layer, by_labels[False], by_labels[True], config)
    return ProbeSummaries(about=ABOUT, rows=rows)


def _rows(target: str, layer: int, true: list[Judged], mixed: list[Judged], config: ProbesConfig) -> list[ProbeSummary]:
    right, wrong = per_prompt(true), per_prompt(mixed)
    counts = np.bincount(np.concatenate([one.labels for one in true]))
    chance = float(counts.max() / counts.sum())
    common = {"layer": layer, "target": target, "prompts": len(right), "seeds": len(true), "chance": chance}
    found: dict[str, tuple[float, float, float]] = {}
    for name, values in (("accuracy", true), ("shuffled", mixed)):
        # The mean is over all tested rows; the number of units is that of prompts, since answers to one share it.
        share = float(np.concatenate([one.right for one in values]).mean())
        found[name] = clustered_share(share, len(right))[:3]
    found |= bootstrapped(true, config.draws)
    difference = paired_t([right[prompt] - wrong[prompt] for prompt in sorted(right)])
    estimate = found["accuracy"][0] - found["shuffled"][0]
    shift = estimate - difference.estimate
    found["selectivity"] = (estimate, difference.low + shift, difference.high + shift)
    return [
        ProbeSummary.model_validate({**common, "metric": name, "estimate": e, "low": low, "high": high})
        for name, (e, low, high) in found.items()
    ]


def per_prompt(tested: Sequence[Judged]) -> dict[int, float]:
    """Share of correctly classified rows of each prompt, over the seeds that tested it."""
    prompts = np.concatenate([one.prompts for one in tested])
    right = np.concatenate([one.right for one in tested])
    known, places = np.unique(prompts, return_inverse=True)
    shares = np.bincount(places, right) / np.bincount(places)
    return dict(zip(known.tolist(), shares.tolist(), strict=True))


def bootstrapped(tested: Sequence[Judged], draws: int) -> dict[str, tuple[float, float, float]]:
    """AUC, precision, recall and F1 as (mean, low, high): means over seeds; prompts are resampled for all alike."""
    known = np.unique(np.concatenate([one.prompts for one in tested]))
    rng = np.random.default_rng(0)
    counts = rng.multinomial(len(known), np.full(len(known), 1 / len(known)), size=draws).astype(float)
    plain = [metrics(one) for one in tested]
    drawn = [metrics(one, counts[:, np.searchsorted(known, one.prompts)]) for one in tested]
    found: dict[str, tuple[float, float, float]] = {}
    for name in METRICS[1:]:
        low, high = np.quantile(np.mean([each[name] for each in drawn], axis=0), [0.025, 0.975])
        found[name] = (float(np.mean([each[name] for each in plain])), float(low), float(high))
    return found
