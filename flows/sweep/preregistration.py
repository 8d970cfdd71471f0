"""Pre-registration: the digest of a plan is written down before its first result exists, and runs are compared with it.

A plan is everything that determines a sweep's results: its axes, its primary metric and correction, and the full config
of every cell. `sublim run sweep --freeze plan.yaml` writes `plan.frozen.json` beside the plan and into the store.
"""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from flows.sweep.cells import Cell, Measured
from flows.sweep.config import SweepConfig
from flows.sweep.early_looks import first_answer, written
from sublim.core.digest import canonical, digest
from sublim.core.errors import UserError
from sublim.core.provenance import code_version
from sublim.files.whole_files import write_whole
from sublim.store.folder import Store


class Verdict(NamedTuple):
    """Whether a run followed a frozen plan."""

    followed: bool | None
    """None when no plan was frozen."""
    sentence: str
    digest: str
    """Digest of what was run."""


def plan_digest(config: SweepConfig, cells: list[Cell]) -> str:
    """The digest of a plan. It depends neither on the order of cells nor on how many seeds a cell has."""
    split = [cell.config.model_copy(update={"seeds": (seed,)}) for cell in cells for seed in cell.seeds]
    return digest({"sweep": config, "cells": sorted(map(digest, split))})


def frozen_path(plan: Path) -> Path:
    """The path of the frozen plan, beside the file of the plan."""
    return plan.with_name(f"{plan.stem}.frozen.json")


def stored_path(store: Store, name: str) -> Path:
    """The path of the frozen plan in the store; fetched first if another machine froze it."""
    path = store.root / "runs" / "plans" / f"{name}.json"
    if not path.exists():
        store.refresh(path.relative_to(store.root).as_posix())
    return path


def note_in_store(store: Store, name: str, text: str) -> None:
    """Puts a frozen plan into the store, for all machines, unless the store has it already: the first one counts."""
    path = stored_path(store, name)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)
        store.share(path)


def freeze(plan: Path, config: SweepConfig, cells: list[Cell], store: Store) -> str:
    """Freezes the plan and returns its digest. An equal plan that is frozen already stays as it is.

    Raises UserError when results of the plan exist already, or when the plan was changed after it was frozen.
    """
    name = plan_digest(config, cells)
    noted = frozen_path(plan)
    if noted.exists():
        before = json.loads(noted.read_text(encoding="utf-8"))
        if before["digest"] == name:
            note_in_store(store, name, noted.read_text(encoding="utf-8"))
            return name
        changed = ", ".join(differences(before["plan"]["sweep"], canonical(config))) or "the preset it starts from"
        raise UserError(
            f"{plan} was changed after it was frozen on {before['frozen']} ({changed}): undo the change, or "
            "freeze it under another file name as a new plan"
        )
    if (before := stored_path(store, name)).exists():  # frozen under another file name, or on another machine
        write_whole(noted, before.read_text(encoding="utf-8"))
        return name
    if early := first_answer(cells, store):
        cell, answer = early
        raise UserError(
            f"results of this plan exist already ({answer.stage} {answer.key[:12]}, cell {cell.name}): a plan must be "
            "frozen before its first result; use other seeds or blocks"
        )
    commit, dirty = code_version()
    record = {
        "digest": name,
        "frozen": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit,
        "dirty": dirty,
        # Canonical: without run-only settings, which change no result.
        "plan": canonical({"sweep": config, "cells": [cell.config for cell in cells]}),
    }
    text = json.dumps(record, indent=1)
    note_in_store(store, name, text)
    write_whole(noted, text)
    return name


def differences(before: Any, now: Any, path: str = "") -> list[str]:
    """The settings in which two plans differ, with both values."""
    if isinstance(before, dict) and isinstance(now, dict):
        names = sorted({*before, *now})
        return [
            found
            for name in names
            for found in differences(before.get(name), now.get(name), f"{path}.{name}".strip("."))
        ]
    return [] if before == now else [f"{path}: frozen {json.dumps(before)}, now {json.dumps(now)}"]


def verdict(config: SweepConfig, cells: list[Cell], store: Store, results: list[Measured]) -> Verdict:
    """Whether the run followed the plan in `config.frozen` or, without one, a plan that was frozen in this store."""
    name = plan_digest(config, cells)
    if config.frozen and config.frozen != name:
        path = stored_path(store, config.frozen)
        before = json.loads(path.read_text(encoding="utf-8"))["plan"]["sweep"] if path.exists() else {}
        changed = "; ".join(differences(before, canonical(config))) or "settings of the pipeline changed"
        text = f"This run did NOT follow the plan that was frozen (digest {config.frozen[:12]}, this run {name[:12]})"
        return Verdict(False, f"{text}: {changed}.", name)
    path = stored_path(store, name)
    if not path.exists():
        return Verdict(None, f"No plan was frozen before this run (digest {name[:12]}): it is exploratory.", name)
    record = json.loads(path.read_text(encoding="utf-8"))
    # The times can be compared as text: both are UTC, to the second.
    early = [each for each in results if written(store, each) < record["frozen"]]
    at = f"frozen {record['frozen']}, digest {name[:12]}"
    if early:
        return Verdict(False, f"The plan ({at}) was frozen AFTER {len(early)} of its results were written.", name)
    return Verdict(True, f"This run followed the plan that was frozen before its first result ({at}).", name)
