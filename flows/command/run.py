"""`sublim run`: a flow with a preset and overrides, on the local server or the one PREFECT_API_URL names."""

import json
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from flows.command.flags import Flag, Json
from flows.infra import server
from flows.infra.prefect_api import reread_environment
from flows.infra.prefect_api import settings as prefect_settings
from flows.registry import FLOWS, config_type, entry, load
from flows.runs.fields import walk
from flows.runs.settings import assignments, build, load_preset, merge, presets, read_tree
from sublim.store.opening import open_store

File = Annotated[Path | None, Parameter(metavar="FILE")]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line of every flow takes."""

    preset: str = "quickstart"
    """The preset to start from: its name, or the path of a YAML file."""
    target: str | None = None
    """The word that teachers are made to prefer, or several, as in owl,wolf."""
    config: File = None
    """A YAML or JSON file of settings, which replace those of the preset."""
    set: Annotated[tuple[str, ...], Parameter(metavar="NAME=VALUE", show_default=False)] = ()
    """One setting, which replaces that of the preset and the file. Repeat the option to give several."""
    as_json: Json = False
    ephemeral: Flag = False
    """Use a Prefect server that ends with this run, as in continuous integration."""


@dataclass(frozen=True, kw_only=True)
class SweepOptions(Options):
    """What the command line of a sweep takes beyond that."""

    freeze: File = None
    """A file as for --config. Its digest is written down before the first result exists, then it is run."""
    dry_run: Flag = False
    """Only list the cells of the sweep (after --freeze)."""


NO_OPTIONS, NO_SWEEP_OPTIONS = Options(), SweepOptions()


def settings_text(flow: str) -> str:
    """Every setting of a flow: name, type, meaning, default."""
    lines = ["settings (for --set and --config; * marks those that never change a result):"]
    for field in walk(config_type(flow)):
        mark = "*" if field.run_only else " "
        default = "" if field.default is None or hasattr(field.default, "model_dump") else f" [{field.default}]"
        lines.append(f" {mark}{field.path} ({field.kind}): {' '.join(field.meaning.split())}{default}")
    return "\n".join(lines)


def overrides(flow: str, options: Options) -> dict[str, Any]:
    """What the command line says over the preset."""
    plan = options.config or (options.freeze if isinstance(options, SweepOptions) else None)
    tree: dict[str, Any] = read_tree(plan) if plan else {}
    tree = merge(tree, assignments(config_type(flow), options.set))
    if options.target is not None:
        tree["target"] = [word.strip() for word in options.target.split(",")]
    return tree


def run(name: str, options: Options = NO_OPTIONS) -> int:
    """Checks everything, then runs the flow."""
    flow = entry(name)
    settings = overrides(name, options)
    config = build(config_type(name), merge(load_preset(flow.presets, options.preset), settings))
    prefect_settings()  # refused here, and not by whatever is the first to import Prefect
    load(flow.check)(config)
    open_store().try_out()  # refused now, and not by a run that a server knows of
    if isinstance(options, SweepOptions):
        from flows.command.sweep import prepare

        settings = prepare(options, settings)
        if options.dry_run:
            return 0
    if options.ephemeral:
        os.environ["PREFECT_SERVER_ALLOW_EPHEMERAL_MODE"] = "true"
        reread_environment()
    else:
        server.ensure()
    result = load(flow.flow)(preset=options.preset, settings=settings)
    module = flow.flow.partition(":")[0]
    print(json.dumps(result) if options.as_json else load(f"{module}:printed")(result))
    return 0


def sweep(options: SweepOptions = NO_SWEEP_OPTIONS) -> int:
    """Runs a sweep."""
    return run("sweep", options)


app = App(name="run")
for place, (name, flow) in enumerate(FLOWS.items()):
    about = f"{flow.question}\n\nPresets: {', '.join(presets(flow.presets))}."
    app.command(sweep if name == "sweep" else partial(run, name), name=name, help=about, sort_key=place)
