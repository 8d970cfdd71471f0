"""`sublim run`: a flow with a preset and settings over it, on the local Prefect server or that of PREFECT_API_URL."""

import json
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import Annotated, Any

from cyclopts import App, Parameter

from flows.command.flags import Flag, Json
from flows.registry import FLOWS, config_type
from flows.runs.fields import groups, walk
from flows.runs.settings import assignments, build, load_preset, merge, presets, read_tree
from sublim.core.config import Config
from sublim.store.opening import open_store

File = Annotated[Path | None, Parameter(metavar="FILE")]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of every flow."""

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
    """Options of a sweep."""

    freeze: File = None
    """A file as for --config. It is frozen as the plan of the sweep (pre-registration), then run."""
    dry_run: Flag = False
    """Only list the cells of the sweep (after --freeze)."""


NO_OPTIONS, NO_SWEEP_OPTIONS = Options(), SweepOptions()


def settings_text(flow: str) -> str:
    """Every setting of a flow, one a line: name, type, default and meaning."""
    lines = [
        "Settings for --set and --config. Defaults hold where the preset sets nothing. Those marked * are in no stage's"
        " cache key; of a path, the contents are. A name may leave out parts in the middle: student.rank.",
        "",
    ]
    unseen = groups(config_type(flow))
    for field in walk(config_type(flow)):
        for path in [each for each in unseen if field.path.startswith(f"{each}.")]:
            lines.append(f"  {path}: {' '.join(unseen.pop(path).split())}")
        if field.path.endswith(".kind"):
            lines.append(f"  with {field.path}={field.default}: {field.meaning}")
            continue
        plain = field.default is not None and not isinstance(field.default, Config)
        default = f", default {json.dumps(field.default, default=str, ensure_ascii=False)}" if plain else ""
        meaning = " ".join(field.meaning.split())
        lines.append(f" {'*' if field.run_only else ' '}{field.path} ({field.kind}{default}): {meaning}")
    return "\n".join(lines)


def overrides(flow: str, options: Options) -> dict[str, Any]:
    """The settings that the command line lays over the preset."""
    plan = options.config or (options.freeze if isinstance(options, SweepOptions) else None)
    tree: dict[str, Any] = read_tree(plan) if plan else {}
    tree = merge(tree, assignments(config_type(flow), options.set))
    if options.target is not None:
        tree["target"] = [word.strip() for word in options.target.split(",")]
    return tree


def run(name: str, options: Options = NO_OPTIONS) -> int:
    """Checks everything, then runs the flow."""
    from flows.infra import prefect_api, server  # httpx takes a tenth of a second to import

    flow = FLOWS[name]
    settings = overrides(name, options)
    config = build(config_type(name), merge(load_preset(flow.presets, options.preset), settings))
    prefect_api.settings()  # raises a UserError here, before something else imports Prefect and fails
    resolve_name(flow.check)(config)
    open_store().try_out()  # raises a UserError here, before a server has a record of the run
    if isinstance(options, SweepOptions):
        from flows.command.sweep import prepare

        settings = prepare(options, config, settings)
        if options.dry_run:
            return 0
    if options.ephemeral:
        os.environ["PREFECT_SERVER_ALLOW_EPHEMERAL_MODE"] = "true"
        prefect_api.reread_environment()
    else:
        server.ensure()
    result = resolve_name(flow.flow)(preset=options.preset, settings=settings)
    module = flow.flow.partition(":")[0]
    print(json.dumps(result) if options.as_json else resolve_name(f"{module}:printed")(result))
    return 0


def sweep(options: SweepOptions = NO_SWEEP_OPTIONS) -> int:
    """Runs a sweep."""
    return run("sweep", options)


app = App(name="run")
for place, (name, flow) in enumerate(FLOWS.items()):
    about = f"{flow.question}\n\nPresets: {', '.join(presets(flow.presets))}."
    app.command(sweep if name == "sweep" else partial(run, name), name=name, help=about, sort_key=place)
