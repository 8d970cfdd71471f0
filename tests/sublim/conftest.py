"""Models that the tests of several rooms use."""

import json
import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def windowed(tiny_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny models, and beside them Gemmas whose sliding window is far shorter than a prompt."""
    models = dict(tiny_models)
    for family in ("gemma2", "gemma3"):
        folder = tmp_path_factory.mktemp("windowed") / family
        shutil.copytree(tiny_models[family], folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"sliding_window": 6}))
        models[f"{family}-window"] = folder
    return models
