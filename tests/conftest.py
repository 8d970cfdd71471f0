"""What all tests share: an environment that reaches nothing outside, and one Prefect server for those that need it."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.update(
    HF_HUB_OFFLINE="1",
    PREFECT_HOME=tempfile.mkdtemp(prefix="sublim-tests-"),  # read when Prefect is imported
    PREFECT_SERVER_ALLOW_EPHEMERAL_MODE="false",
    PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW="ignore",
)
os.environ.setdefault("OMP_NUM_THREADS", "1")
for name in ("SUBLIM_STORE", "SUBLIM_KILL_AT", "SUBLIM_ISOLATE", "SUBLIM_VERIFY", "PREFECT_API_URL"):
    os.environ.pop(name, None)

import tasks  # noqa: E402, F401 - settles Prefect's environment


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[str]:
    """The API address of a real server of this session's own, in force for this process and those it starts."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from tests.server import running_server

    with running_server(Path(os.environ["PREFECT_HOME"])) as url:
        os.environ["PREFECT_API_URL"] = url
        with temporary_settings({PREFECT_API_URL: url}):
            yield url
        del os.environ["PREFECT_API_URL"]


@pytest.fixture
def store_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that SUBLIM_STORE points to."""
    root = tmp_path / "store"
    monkeypatch.setenv("SUBLIM_STORE", str(root))
    return root
