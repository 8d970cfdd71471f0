"""`sublim presets | runs | show | report`: what can be run, what was run, and how an artifact was made."""

import json
import sys
from typing import Annotated, Any

from cyclopts import Parameter

from flows.command.flags import Json, Key
from flows.registry import FLOWS
from flows.runs.settings import preset_folder, read_tree
from flows.runs.settings import presets as presets_of
from sublim.core.errors import UserError
from sublim.store.manifest import Manifest
from sublim.store.opening import open_store


def presets() -> int:
    """Prints the presets of every flow."""
    for name, flow in FLOWS.items():
        print(f"{name}: {flow.question}")
        for preset in presets_of(flow.presets):
            about = read_tree(preset_folder(flow.presets) / f"{preset}.yaml").get("about", "")
            print(f"  {preset:28} {about}")
    return 0


def runs(*, as_json: Json = False) -> int:
    """Prints the runs in the store."""
    from flows.runs.record import list_runs  # Prefect takes two seconds to import

    store = open_store()
    found = list_runs(store)
    if as_json:
        print(json.dumps([run.model_dump() for run in found]))
        return 0
    if not found:
        print(f"no runs in {store.address} yet: `sublim run pipeline --preset quickstart` makes one", file=sys.stderr)
    for run in found:
        cached = sum(stage.state == "Cached" for stage in run.stages)
        stages = f"{len(run.stages)} stages, {cached} cached"
        print(f"{run.name:56} {run.status:10} {run.preset:20} {stages:26} {run.seconds:9.1f} s")
    return 0


def show(key: Key, /, *, as_json: Json = False) -> int:
    """Prints an artifact's config, inputs, provenance and lineage."""
    store = open_store()
    manifest = store.search(key)
    if as_json:
        print(manifest.model_dump_json(indent=1))
        return 0
    print("\n".join(_description(manifest, store.lineage(manifest.artifact))))
    return 0


def _description(manifest: Manifest, lineage: dict[str, Manifest]) -> list[str]:
    artifact, made = manifest.artifact, manifest.provenance
    return [
        f"{artifact.stage} (version {manifest.version})",
        f"  key       {artifact.key}",
        f"  content   {artifact.content}",
        f"  made      {made.started}, {made.seconds:.1f} s on {made.device} ({made.host})",
        f"  code      {made.commit or 'not from a git checkout'}{' with uncommitted changes' if made.dirty else ''}, "
        + ", ".join(f"{name} {version}" for name, version in made.packages.items()),
        "  files     " + ", ".join(f"{path} ({entry.size:,} bytes)" for path, entry in manifest.files.items()),
        "  from      " + (", ".join(list(lineage)[1:]) or "-"),
        "  config    " + _shortened(manifest.config),
        "  notes     " + _shortened(manifest.notes),
    ]


def _shortened(value: Any, limit: int = 2000) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= limit else f"{text[:limit]}... (--json prints all)"


def report(run: Annotated[str, Parameter(help="A run's name, a part that no other has, or `last`.")], /) -> int:
    """Prints where the report of a run is, and its summary."""
    from flows.runs.record import find_run

    store = open_store()
    found = find_run(store, run)
    if found.report is None:
        raise UserError(f"{found.name} has no report: the run {found.status.lower()} before one was written")
    store.refresh(f"runs/{found.name}/*")
    path = store.root / found.report
    print(path)
    summary = path.with_name("summary.json")
    if summary.exists():
        print(summary.read_text(encoding="utf-8"))
    return 0
