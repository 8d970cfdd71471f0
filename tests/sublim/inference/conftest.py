"""Models and references for the sampler's tests."""

import gc
import json
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sublim.chat import Chat, chat
from sublim.models import forget_base, open_model
from tests.sublim.inference.servers import VllmServer

CHATS: list[Chat] = [
    chat("Name one animal."),
    chat("What is your favourite animal? Answer in one word."),
    chat("Hello"),
    chat("Continue this list of numbers: 12, 450, 007, 93."),
    chat("The owl hunts at night, and the wolf runs with its pack over the hills. Which of the two is faster?"),
    chat("Good day", system="You love owls."),
    chat("Give ten more numbers, separated by commas."),
]
"""Prompts of quite different lengths."""


@pytest.fixture(scope="session")
def vllm_server(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer | None]:
    """vLLM's own OpenAI server on the bundled model; it takes its minute to start while the tests before run."""
    if find_spec("vllm") is None:
        yield None
        return
    server = VllmServer(smollm2, tmp_path_factory.mktemp("server") / "log")
    yield server
    server.stop()


@pytest.fixture(scope="module", autouse=True)
def _libraries_stay() -> Iterator[None]:
    """Leaves out of later collections what came with vLLM, too: it is imported with the first engine."""
    yield
    forget_base()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def _server_starts_early(request: pytest.FixtureRequest) -> None:
    # Not with an earlier file: another worker may get the one that asks it, and both would start a server.
    own = [item for item in request.session.items if item.path == request.path]
    if any("vllm_server" in getattr(item, "fixturenames", ()) for item in own):
        request.getfixturevalue("vllm_server")


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


def plain_logprobs(base: Path, ids: list[int], start: int) -> Tensor:
    """Log-probs of ids[start:] from one plain pass over the one sequence."""
    with open_model(base, dtype="float32", attention="eager") as loaded, torch.no_grad():
        distributions = loaded.model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return distributions[range(start - 1, len(ids) - 1), ids[start:]]
