"""`sublim presets | runs | show | report`: what there is to run, what ran, and what an artifact is made of."""

import argparse
import json
from typing import Any

from flows.command.run import Subparsers
from flows.registry import FLOWS
from flows.runs.settings import preset_folder, presets, read_tree
from sublim.core.errors import UserError
from sublim.store.manifest import Manifest
from sublim.store.opening import open_store


def register(commands: "Subparsers[argparse.ArgumentParser]") -> None:
    """Adds the four commands."""
    command = commands.add_parser("presets", help="the presets of every flow")
    command.set_defaults(run=list_presets)
    command = commands.add_parser("runs", help="the runs in the store, last one last")
    command.add_argument("--json", action="store_true")
    command.set_defaults(run=show_runs)
    command = commands.add_parser("show", help="an artifact: config, inputs, provenance, lineage")
    command.add_argument("key", metavar="KEY", help="six or more digits of its key")
    command.add_argument("--json", action="store_true", help="print the whole manifest")
    command.set_defaults(run=show)
    command = commands.add_parser("report", help="where the report of a run is, and its summary")
    command.add_argument("name", metavar="RUN", help="a run's name or a part of it, or `last`")
    command.set_defaults(run=report)


def list_presets(options: argparse.Namespace) -> int:
    for name, flow in FLOWS.items():
        print(f"{name}: {flow.question}")
        for preset in presets(flow.presets):
            about = read_tree(preset_folder(flow.presets) / f"{preset}.yaml").get("about", "")
            print(f"  {preset:28} {about}")
    return 0


def show_runs(options: argparse.Namespace) -> int:
    from flows.runs.record import list_runs  # Prefect takes two seconds to import

    runs = list_runs(open_store())
    if options.json:
        print(json.dumps([run.model_dump() for run in runs]))
        return 0
    for run in runs:
        cached = sum(stage.state == "Cached" for stage in run.stages)
        stages = f"{len(run.stages)} stages, {cached} cached"
        print(f"{run.name:56} {run.status:10} {run.preset:20} {stages:26} {run.seconds:9.1f} s")
    return 0


def show(options: argparse.Namespace) -> int:
    store = open_store()
    manifest = store.search(options.key)
    if options.json:
        print(manifest.model_dump_json(indent=1))
        return 0
    print("\n".join(_description(manifest, store.lineage(manifest.artifact))))
    return 0


def _description(manifest: Manifest, lineage: dict[str, Manifest]) -> list[str]:
    artifact, made = manifest.artifact, manifest.provenance
    lines = [
        f"{artifact.stage} (version {manifest.version})",
        f"  key       {artifact.key}",
        f"  content   {artifact.content}",
        f"  made      {made.started}, {made.seconds:.1f} s on {made.device} ({made.host})",
        f"  code      {made.commit or 'no checkout'}{' with changes' if made.dirty else ''}, "
        + ", ".join(f"{name} {version}" for name, version in made.packages.items()),
        "  files     " + ", ".join(f"{path} ({entry.size:,} bytes)" for path, entry in manifest.files.items()),
        "  from      " + (", ".join(list(lineage)[1:]) or "-"),
        "  config    " + _shortened(manifest.config),
        "  notes     " + _shortened(manifest.notes),
    ]
    return lines


def _shortened(value: Any, limit: int = 2000) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= limit else f"{text[:limit]}... (--json prints all)"


def report(options: argparse.Namespace) -> int:
    from flows.runs.record import find_run

    store = open_store()
    run = find_run(store, options.name)
    if run.report is None:
        raise UserError(f"{run.name} left no report: it {run.status.lower()} before one was written")
    store.refresh(f"runs/{run.name}/*")
    path = store.root / run.report
    print(path)
    summary = path.with_name("summary.json")
    if summary.exists():
        print(summary.read_text(encoding="utf-8"))
    return 0
