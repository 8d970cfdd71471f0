"""`sublim run`: a flow with a preset and overrides, on the local server or the one PREFECT_API_URL names."""

import argparse
import json
import os
from pathlib import Path
from typing import Any

from flows.infra import server
from flows.infra.prefect_api import reread_environment
from flows.infra.prefect_api import settings as prefect_settings
from flows.registry import FLOWS, config_type, entry, load
from flows.runs.fields import walk
from flows.runs.settings import assignments, build, load_preset, merge, presets, read_tree
from sublim.store.opening import open_store

Subparsers = argparse._SubParsersAction  # pyright: ignore[reportPrivateUsage]


class FlowParser(argparse.ArgumentParser):
    """A parser whose help ends with every setting of its flow, gathered only when asked for."""

    def format_help(self) -> str:
        flow = self.get_default("flow")
        self.epilog = settings_text(flow) if flow else None
        return super().format_help()


def register(commands: "Subparsers[argparse.ArgumentParser]") -> None:
    """Adds `run`, with one sub-command per flow."""
    run = commands.add_parser("run", help="run a flow", description="Runs a flow; finished stages come from the cache.")
    flows = run.add_subparsers(dest="flow", required=True, metavar="FLOW", parser_class=FlowParser)
    for name, flow in FLOWS.items():
        command = flows.add_parser(
            name,
            help=flow.question,
            description=f"{name}: {flow.question}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        add_options(command, name)


def add_options(command: argparse.ArgumentParser, flow: str) -> None:
    """The options that every flow takes."""
    command.add_argument("--preset", default="quickstart", help=f"a name ({', '.join(presets(flow))}) or a YAML file")
    command.add_argument("--target", help="the word or words the teacher is made to like: owl or owl,wolf")
    command.add_argument("--config", type=Path, metavar="FILE", help="a YAML file of settings laid over the preset")
    command.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="one setting; repeatable")
    command.add_argument("--json", action="store_true", help="print one JSON object as the last line of stdout")
    command.add_argument("--ephemeral", action="store_true", help="use a Prefect server that ends with this run (CI)")
    if flow == "sweep":
        command.add_argument(
            "--freeze",
            type=Path,
            metavar="PLAN",
            help="a YAML file as for --config: write its digest down before the first result exists, then run it",
        )
        command.add_argument("--dry-run", action="store_true", help="only say which cells there are (after --freeze)")
    command.set_defaults(run=run, flow=flow)


def settings_text(flow: str) -> str:
    """Every setting of a flow: name, type, meaning, default."""
    lines = ["settings (for --set and --config; * marks those that never change a result):"]
    for field in walk(config_type(flow)):
        mark = "*" if field.run_only else " "
        default = "" if field.default is None or hasattr(field.default, "model_dump") else f" [{field.default}]"
        lines.append(f" {mark}{field.path} ({field.kind}): {' '.join(field.meaning.split())}{default}")
    return "\n".join(lines)


def overrides(flow: str, options: argparse.Namespace) -> dict[str, Any]:
    """What the command line says over the preset."""
    plan = options.config or getattr(options, "freeze", None)
    tree: dict[str, Any] = read_tree(plan) if plan else {}
    tree = merge(tree, assignments(config_type(flow), options.set))
    if options.target is not None:
        tree["target"] = [word.strip() for word in options.target.split(",")]
    return tree


def run(options: argparse.Namespace) -> int:
    """Checks everything, then runs the flow."""
    flow = entry(options.flow)
    settings = overrides(options.flow, options)
    config = build(config_type(options.flow), merge(load_preset(flow.presets, options.preset), settings))
    prefect_settings()  # refused here, and not by whatever is the first to import Prefect
    load(flow.check)(config)
    open_store().try_out()  # refused now, and not by a run that a server knows of
    if options.flow == "sweep":
        from flows.command.sweep import prepare

        settings, stopped = prepare(options, settings)
        if stopped:
            return 0
    if options.ephemeral:
        os.environ["PREFECT_SERVER_ALLOW_EPHEMERAL_MODE"] = "true"
        reread_environment()
    else:
        server.ensure()
    result = load(flow.flow)(preset=options.preset, settings=settings)
    if options.json:
        print(json.dumps(result))
    else:
        module = flow.flow.partition(":")[0]
        print(load(f"{module}:printed")(result))
    return 0
