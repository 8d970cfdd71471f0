"""vLLM's own server for the tests of backends, started while other tests run."""

import gc
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from sublim.models.opening import forget_base
from tests.sublim.backends.servers import VllmServer


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
