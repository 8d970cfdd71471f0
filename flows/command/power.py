"""`sublim power`: how many seeds or blocks an effect takes, from a pilot's spread, before the GPU time is spent."""

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from flows.command.flags import Json
from sublim.core.errors import UserError
from sublim.store.folder import Store
from sublim.store.manifest import Manifest
from sublim.store.opening import open_store

Share = Annotated[float, Parameter(validator=Number(gt=0, lt=1))]
SHOWN = (3, 4, 6, 8, 12, 16, 24, 32)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Question:
    """What is to be planned."""

    effect: float
    """The effect to be seen, student minus control: in nats for the margin, a share of answers for the rate."""
    pilot: Annotated[str | None, Parameter(metavar="KEY|RUN")] = None
    """Where the spread comes from: the key of a `compare` artifact, or a pipeline run by name (or `last`)."""
    sd: float | None = None
    """Standard deviation of one unit's effect, when there is no pilot."""
    label: str | None = None
    """Which comparison of the run, as in `owl` or `owl 64`."""
    metric: Literal["margin", "rate"] = "margin"
    """The pilot's metric."""
    wanted: Share = 0.8
    """Power: the chance to see the effect."""
    level: Share = 0.95
    """Level of the intervals."""
    seeds: Annotated[int | None, Parameter(validator=Number(gte=1))] = None
    """Seeds in each block, when the pilot has blocks."""


def power(question: Question, *, as_json: Json = False) -> int:
    """Plan how many units (pairs of seeds, or blocks) it takes to see an effect of a given size."""
    found = plan(question)
    if as_json:
        print(json.dumps(found))
        return 0
    about = found["pilot"] or f"standard deviation {question.sd:g} of one unit"
    print(f"an effect of {question.effect:g}, from {about}")
    print(f"  units for {question.wanted:.0%} power, interval on these questions: {found['units']}")
    if found["units_high"] is not None:
        print(f"    {found['units_high']} if the pilot's spread was low by chance (80 % bound)")
    if found["pilot"]:
        too = found["units_questions"]
        print(f"  interval over questions too: {too or 'no number of units is enough, ask more questions'}")
    print(f"  a sign-flip test can reach p < {1 - question.level:.2g} from {found['sign_flips']} units on")
    for row in found["table"]:
        beyond = "" if row["questions_too"] is None else f", questions too {row['questions_too']:.2f}"
        print(f"    {row['units']:3} units: power {row['these_questions']:.2f}{beyond}")
    return 0


def plan(question: Question) -> dict[str, Any]:
    """The plan as `--json` prints it."""
    from sublim.design.pilot import read_pilot  # scipy and polars take a second to import
    from sublim.stats.intervals import power as power_of
    from sublim.stats.power import crossed_power, nested_spread, plan_units, spread_of

    _check(question)
    if question.sd is not None:
        spread, questions, sd, pilot, units = None, None, question.sd, None, None
    else:
        store = open_store()
        manifest = _manifest(store, question.pilot, question.label)
        read = read_pilot(store, manifest, question.metric)
        spread, questions, units = spread_of(read.units), read.units.shape[1], len(read.units)
        sd = float(read.units.mean(axis=1).std(ddof=1))
        if question.seeds is not None:
            sd = nested_spread(read.matrix.mean(axis=1).tolist(), read.blocks).of_block(question.seeds)
            spread = None
        what = "blocks" if len({*read.blocks}) > 1 else "pairs"
        pilot = f"a pilot on {read.target} of {units} {what} x {questions} questions, {manifest.artifact.key[:12]}"
    found = plan_units(
        question.effect,
        sd,
        spread=spread,
        questions=questions,
        pilot_units=units,
        wanted=question.wanted,
        level=question.level,
    )
    table = [
        {
            "units": n,
            "these_questions": power_of(n, question.effect, sd, question.level),
            "questions_too": crossed_power(spread, question.effect, n, questions, question.level)
            if spread and questions
            else None,
        }
        for n in SHOWN
    ]
    return {
        "effect": question.effect,
        "sd": sd,
        "pilot": pilot,
        "units": found.these_questions,
        "units_high": found.these_questions_high,
        "units_questions": found.questions_too,
        "sign_flips": found.sign_flips,
        "spread": spread and spread._asdict(),
        "table": table,
    }


def _check(question: Question) -> None:
    if (question.pilot is None) == (question.sd is None):
        raise UserError("give one of --pilot and --sd, for the spread of the effect")
    if question.seeds is not None and question.sd is not None:
        raise UserError("--seeds needs a --pilot with blocks")


def _manifest(store: Store, name: str, label: str | None) -> Manifest:
    """The comparison that a key names, or the one of a run."""
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
