"""What the report and the terminal say of specific effects."""

from collections.abc import Iterator, Mapping
from typing import Any

from flows.pipeline.study import Study, read
from flows.runs.record import Run
from sublim.evals.specificity.config import Specificity
from sublim.report.shown import SpecificShown
from sublim.report.specific import teachers_of


def specific_of(run: Run, study: Study) -> list[SpecificShown]:
    """The students of all teachers beside each other, at every checkpoint."""
    return [
        SpecificShown(
            updates=update,
            against=study.config.compared,
            found=read(Specificity, run.store, artifact, "specificity.json"),
        )
        for update, artifact in study.specific.items()
    ]


def printed_specific(target: Mapping[str, Any]) -> Iterator[str]:
    """The first lines of a target: its specific effect, then generic and total, and its placebo rank."""
    word, specific = target["target"], target["specific"]
    if specific is None:
        yield f"{word}: do students come to prefer it, compared with their paired controls?"
        yield f"  no specific effect: {target['specific_reason']}"
    else:
        yield f"{word}: specific to {word}, against students of {teachers_of(specific['against'])}:"
        yield f"  specific {_told(specific)}{p_of(specific)}"
        yield f"  generic  {_told(target['generic'])}"
        yield f"  total    {_told(target['total'])}"
    told = [
        f"{rank['rank']} of {rank['of']} words by {kind} effect"
        for kind, rank in target["placebo_rank"].items()
        if rank is not None
    ]
    if told:
        yield f"  placebo rank (1 = moved furthest): {', '.join(told)}"


def printed_gamma(outcome: Mapping[str, Any]) -> Iterator[str]:
    """γ of a run with several targets, with its p and what its interval does not cover."""
    gamma = outcome["gamma"]
    if gamma is None or len(outcome["targets"]) < 2:
        return
    kind = "exact" if gamma["exact"] else f"{gamma['arrangements']:,} arrangements drawn"
    yield f"γ over {', '.join(gamma['targets'])}: {_told(gamma)}"
    smallest = f"smallest possible {gamma['p_smallest']:.3g}"
    yield f"  one-sided permutation p {gamma['p']:.4g}{after_holm(gamma)} ({kind}; {smallest})"
    yield f"  {gamma['about_units']}"


def p_of(effect: Mapping[str, Any]) -> str:
    """The p of an effect that was tested, and what is left of it after correction for all tests of the run."""
    return f", p {effect['p']:.2g}{after_holm(effect)}" if "p" in effect else ""


def after_holm(effect: Mapping[str, Any]) -> str:
    """What is left of a p after correction for all tests of the run; nothing where it was not corrected."""
    return f", {effect['p_holm']:.2g} over {effect['comparisons']} tests" if "p_holm" in effect else ""


def _told(effect: Mapping[str, Any]) -> str:
    parts = [
        f"{effect[f'low{which}']:+.2f} to {effect[f'high{which}']:+.2f} ({name})"
        for which, name in (("", "these questions"), ("_questions", "questions too"))
        if effect[f"low{which}"] is not None
    ]
    return f"{effect['estimate']:+.2f} nats, {', '.join(parts) or 'no interval: ' + str(effect['reason'])}"
