"""`sublim run sweep --freeze PLAN | --dry-run`: freezing the plan of a sweep, and listing its cells."""

import json

from flows.command.run import SweepOptions
from flows.runs.settings import Tree, merge
from flows.sweep.cells import Cell, cells_of, known
from flows.sweep.config import SweepConfig
from flows.sweep.preregistration import freeze, frozen_path, note_in_store
from sublim.core.config import Config
from sublim.core.errors import UserError
from sublim.store.folder import Store
from sublim.store.opening import open_store


def prepare(options: SweepOptions, config: Config, settings: Tree) -> Tree:
    """The settings to run with, including the digest of a frozen plan, which is frozen first with --freeze."""
    if options.freeze and options.config:
        raise UserError("--freeze and --config both name a file of settings: give one of them")
    assert isinstance(config, SweepConfig)
    store, cells = open_store(), cells_of(config)
    if options.freeze:
        name = freeze(options.freeze, config, cells, store)
        settings = merge(settings, {"frozen": name})
        if not options.as_json:
            print(f"frozen: {name} ({frozen_path(options.freeze)})")
    elif options.config and frozen_path(options.config).exists():
        # The run is compared with the plan frozen beside the file, even if the file was changed since.
        text = frozen_path(options.config).read_text(encoding="utf-8")
        name = json.loads(text)["digest"]
        note_in_store(store, name, text)
        settings = merge(settings, {"frozen": name})
    if options.dry_run:
        tell(options, config, cells, store, settings.get("frozen"))
    return settings


def tell(options: SweepOptions, config: SweepConfig, cells: list[Cell], store: Store, frozen: str | None) -> None:
    """Prints the cells, and which of them have their results in the store."""
    present = [known(store, cell, config) is not None for cell in cells]
    if options.as_json:
        found = [{"cell": cell.name, "present": there} for cell, there in zip(cells, present, strict=True)]
        print(json.dumps({"flow": "sweep", "preset": options.preset, "cells": found, "frozen": frozen}))
        return
    for cell, there in zip(cells, present, strict=True):
        print(f"{'present' if there else 'to run ':8} {cell.name}")
    print(f"{len(cells)} cells, {sum(present)} of them present; nothing was run")
