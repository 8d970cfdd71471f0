"""`sublim power`: how many seeds or blocks it takes to see an effect, from the spread of a pilot."""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from flows.command.flags import Json
from sublim.core.errors import UserError
from sublim.store.folder import Store
from sublim.store.manifest import Manifest
from sublim.store.opening import open_store

if TYPE_CHECKING:
    from sublim.stats.power import Spread

Share = Annotated[float, Parameter(validator=Number(gt=0, lt=1))]
SHOWN = (3, 4, 6, 8, 12, 16, 24, 32)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Question:
    """The planned comparison."""

    effect: float
    """The effect to be detected, student minus control: in nats for the margin, a share of all answers asked for the
    rate."""
    pilot: Annotated[str | None, Parameter(metavar="KEY|RUN")] = None
    """The pilot that gives the spread: key of a `compare` artifact, or name of a run of the pipeline (or `last`). The
    plan uses the upper 80 % confidence limit of its spread, and shows what the estimate would give."""
    sd: float | None = None
    """Standard deviation of the effect of one unit, instead of a pilot."""
    label: str | None = None
    """Which comparison of the pilot run, as in `owl`, or `owl 64` for 64 updates."""
    metric: Literal["margin", "rate"] = "margin"
    """The metric of the pilot."""
    wanted: Share = 0.8
    """The power to reach: the probability of detecting the effect."""
    level: Share = 0.95
    """Confidence level of the intervals."""
    seeds: Annotated[int | None, Parameter(validator=Number(gte=1))] = None
    """Planned seeds in each block, if the pilot has blocks."""


def power(question: Question, *, as_json: Json = False) -> int:
    """Prints the plan. Units are pairs of student and control or, if the pilot has several blocks, blocks."""
    found = plan(question)
    if as_json:
        print(json.dumps(found))
        return 0
    about = found["pilot"] or f"a standard deviation of {question.sd:g} in each unit"
    print(f"an effect of {question.effect:g}, given {about}")
    by_estimate = found["estimate"]
    if by_estimate:
        limit, own = found["limit"], by_estimate["sd"]
        print(f"  planned with the {limit}: sd {found['sd']:.3g}; the pilot itself has {own:.3g}")
    print(
        f"  units for {question.wanted:.0%} power, with an interval over units on these questions: {found['units']}"
        + (f" (with the pilot's own spread {by_estimate['units']})" if by_estimate else "")
    )
    if found["pilot"] and found["spread"]:
        too, itself = found["units_questions"], by_estimate["units_questions"]
        print(
            f"  with an interval over units and questions: {too or 'no number of units is enough, ask more questions'}"
            f" (with the pilot's own spread {itself or 'no number'})"
        )
    print(f"  a sign-flip test needs at least {found['sign_flips']} units to reach p < {1 - question.level:.2g}")
    for row in found["table"]:
        beyond = "" if row["questions_too"] is None else f", over questions too {row['questions_too']:.2f}"
        print(f"    {row['units']:3} units: power {row['these_questions']:.2f}{beyond}")
    return 0


def plan(question: Question) -> dict[str, Any]:
    """The plan as `--json` prints it. With a pilot it is made with the upper limit of its spread, not the estimate."""
    if (question.pilot is None) == (question.sd is None):
        raise UserError("give one of --pilot and --sd, for the spread of the effect")
    if question.sd is not None:
        if question.seeds is not None:
            raise UserError("--seeds needs a --pilot with blocks")
        return {**_planned(question, question.sd), "pilot": None, "limit": None, "estimate": None}
    return _from_pilot(question, question.pilot or "")


def _from_pilot(question: Question, name: str) -> dict[str, Any]:
    from sublim.design.pilot import read_pilot  # scipy and polars take a second to import
    from sublim.stats.power import nested_spread, spread_of, upper_spread, upper_variance

    store = open_store()
    manifest = _manifest(store, name, question.label)
    read = read_pilot(store, manifest, question.metric)
    units, questions = read.units.shape
    spread, upper = spread_of(read.units), upper_spread(read.units)
    sd = float(read.units.mean(axis=1).std(ddof=1))
    if question.seeds is not None:
        sd = nested_spread(read.matrix.mean(axis=1).tolist(), read.blocks).of_block(question.seeds)
        spread = upper = None
    high = upper_variance(sd**2, units - 1) ** 0.5
    what = "blocks" if len({*read.blocks}) > 1 else "pairs"
    return {
        **_planned(question, high, upper, questions),
        "pilot": f"a pilot on {read.target} of {units} {what} x {questions} questions, {manifest.artifact.key[:12]}",
        "limit": f"upper 80 % confidence limit of the pilot's spread (chi-square, {units - 1} degrees of freedom)",
        "estimate": _planned(question, sd, spread, questions),
    }


def _planned(
    question: Question, sd: float, spread: "Spread | None" = None, questions: int | None = None
) -> dict[str, Any]:
    """The plan with one spread."""
    from sublim.stats.intervals import power as power_of
    from sublim.stats.power import crossed_power, plan_units

    effect, level = question.effect, question.level
    found = plan_units(effect, sd, spread=spread, questions=questions, wanted=question.wanted, level=level)
    table = [
        {
            "units": n,
            "these_questions": power_of(n, effect, sd, level),
            "questions_too": crossed_power(spread, effect, n, questions, level) if spread and questions else None,
        }
        for n in SHOWN
    ]
    return {
        "effect": effect,
        "sd": sd,
        "units": found.these_questions,
        "units_questions": found.questions_too,
        "sign_flips": found.sign_flips,
        "spread": spread and spread._asdict(),
        "table": table,
    }


def _manifest(store: Store, name: str, label: str | None) -> Manifest:
    """The comparison with this key, or that of the run with this name."""
    if all(letter in "0123456789abcdef" for letter in name) and len(name) >= 6:
        return store.search(name)
    from flows.runs.record import find_run

    run = find_run(store, name)
    compared = [stage for stage in run.stages if stage.stage == "compare" and stage.content]
    chosen = [stage for stage in compared if label is None or stage.label == label]
    if not compared:
        raise UserError(f"{run.name} compared nothing: give the key of a `compare` artifact or a run of the pipeline")
    if len(chosen) != 1:
        labels = ", ".join(stage.label for stage in compared)
        raise UserError(f"{run.name} has {len(chosen)} comparisons that fit: give one as --label ({labels})")
    manifest = store.manifest("compare", chosen[0].key)
    if manifest is None:
        raise UserError(f"the comparison of {run.name} is no longer in the store: run it again")
    return manifest
