"""`sublim power`: how many seeds or blocks an effect takes, from a pilot's spread, before the GPU time is spent."""

import argparse
import json
from typing import Any

from flows.command.run import Subparsers
from sublim.core.errors import UserError
from sublim.store.folder import Store
from sublim.store.manifest import Manifest
from sublim.store.opening import open_store

SHOWN = (3, 4, 6, 8, 12, 16, 24, 32)


def register(commands: "Subparsers[argparse.ArgumentParser]") -> None:
    """Adds `power`."""
    command = commands.add_parser(
        "power",
        help="how many seeds or blocks show an effect of a given size",
        description="Units (pairs of seeds, or blocks) that an effect takes, from a pilot in the store or a spread.",
    )
    command.add_argument("--effect", type=float, required=True, help="the effect to be seen: nats, or share of answers")
    source = command.add_mutually_exclusive_group(required=True)
    source.add_argument("--pilot", metavar="KEY|RUN", help="a `compare` artifact, or a pipeline's run (or `last`)")
    source.add_argument("--sd", type=float, help="standard deviation of one unit's effect")
    command.add_argument("--label", help="which comparison of the run, as in `owl` or `owl 64`")
    command.add_argument("--metric", choices=["margin", "rate"], default="margin")
    command.add_argument("--wanted", type=float, default=0.8, help="chance to see the effect")
    command.add_argument("--level", type=float, default=0.95, help="of the intervals")
    command.add_argument("--seeds", type=int, help="seeds in each block, where the pilot has blocks")
    command.add_argument("--json", action="store_true")
    command.set_defaults(run=power)


def power(options: argparse.Namespace) -> int:
    """Prints the plan."""
    found = plan(options)
    if options.json:
        print(json.dumps(found))
        return 0
    about = found["pilot"] or f"standard deviation {options.sd:g} of one unit"
    print(f"an effect of {options.effect:g}, from {about}")
    print(f"  units for {options.wanted:.0%} power, interval on these questions: {found['units']}")
    if found["units_high"] is not None:
        print(f"    {found['units_high']} if the pilot's spread was low by chance (80 % bound)")
    if found["pilot"]:
        too = found["units_questions"]
        print(f"  interval over questions too: {too or 'no number of units is enough, ask more questions'}")
    print(f"  a sign-flip test can reach p < {1 - options.level:.2g} from {found['sign_flips']} units on")
    for row in found["table"]:
        beyond = "" if row["questions_too"] is None else f", questions too {row['questions_too']:.2f}"
        print(f"    {row['units']:3} units: power {row['these_questions']:.2f}{beyond}")
    return 0


def plan(options: argparse.Namespace) -> dict[str, Any]:
    """The plan as `--json` prints it."""
    from sublim.design.pilot import read_pilot  # scipy and polars take a second to import
    from sublim.stats.intervals import power as power_of
    from sublim.stats.power import crossed_power, nested_spread, plan_units, spread_of

    _check(options)
    if options.sd is not None:
        spread, questions, sd, pilot, units = None, None, options.sd, None, None
    else:
        store = open_store()
        manifest = _manifest(store, options.pilot, options.label)
        read = read_pilot(store, manifest, options.metric)
        spread, questions, units = spread_of(read.units), read.units.shape[1], len(read.units)
        sd = float(read.units.mean(axis=1).std(ddof=1))
        if options.seeds is not None:
            sd = nested_spread(read.matrix.mean(axis=1).tolist(), read.blocks).of_block(options.seeds)
            spread = None
        what = "blocks" if len({*read.blocks}) > 1 else "pairs"
        pilot = f"a pilot on {read.target} of {units} {what} x {questions} questions, {manifest.artifact.key[:12]}"
    found = plan_units(
        options.effect,
        sd,
        spread=spread,
        questions=questions,
        pilot_units=units,
        wanted=options.wanted,
        level=options.level,
    )
    table = [
        {
            "units": n,
            "these_questions": power_of(n, options.effect, sd, options.level),
            "questions_too": crossed_power(spread, options.effect, n, questions, options.level)
            if spread and questions
            else None,
        }
        for n in SHOWN
    ]
    return {
        "effect": options.effect,
        "sd": sd,
        "pilot": pilot,
        "units": found.these_questions,
        "units_high": found.these_questions_high,
        "units_questions": found.questions_too,
        "sign_flips": found.sign_flips,
        "spread": spread and spread._asdict(),
        "table": table,
    }


def _check(options: argparse.Namespace) -> None:
    for name in ("wanted", "level"):
        if not 0 < getattr(options, name) < 1:
            raise UserError(f"--{name} {getattr(options, name):g} must lie between 0 and 1")
    if options.seeds is not None and (options.seeds < 1 or options.sd is not None):
        raise UserError("--seeds needs a --pilot with blocks, and at least one seed")


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
