"""What all tests share: an environment that reaches nothing outside, and one Prefect server for those that need it."""

import gc
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from secrets import token_hex

import pytest

from tests.server import Starting, starting_server

gc.disable()  # until all tests are imported, which makes no garbage
HOME = Path(tempfile.mkdtemp(prefix="sublim-tests-"))
"""Of this process alone; gone when it ends."""
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    XDG_CACHE_HOME=str(HOME / "cache"),  # digests of local models are remembered there
    PREFECT_HOME=str(HOME / "prefect"),  # read when Prefect is imported
    PREFECT_SERVER_ALLOW_EPHEMERAL_MODE="false",
    PREFECT_LOGGING_TO_API_ENABLED="false",
)
os.environ.setdefault("OMP_NUM_THREADS", "1")
if "PYTEST_XDIST_WORKER" not in os.environ:
    # The workers inherit it: vLLM finds out in 17 s what a model class can do, and remembers it there.
    os.environ["VLLM_CACHE_ROOT"] = str(HOME / "vllm")
import tasks  # noqa: E402, F401 - settles Prefect's environment

for name in ("SUBLIM_CACHE", "SUBLIM_STORE", "SUBLIM_KILL_AT", "SUBLIM_ISOLATE", "SUBLIM_VERIFY", "PREFECT_API_URL"):
    os.environ.pop(name, None)

LONGEST = [
    "test_drills",
    "test_agreement",
    "test_arms",
    "test_pipeline",
    "test_ui",
    "test_vllm",
    "test_lora_search",
    "test_sweep",
    "test_steered_vllm",
    "test_sae_analysis",
    "test_crash",
    "test_openai",
    "test_secrets",
    "test_shared_stage",
    "test_stage",
    "test_study",
]
"""Files that take more than half a minute, the longest first. The first waits for others, and computes little."""

_server = pytest.StashKey[Starting]()
_running = pytest.StashKey[ExitStack]()


def needs_server(item: pytest.Item) -> bool:
    return "prefect_server" in getattr(item, "fixturenames", ())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # A file is one worker's: the longest come first, or one of them would be left for the end. The others begin with
    # what needs no server.
    def place(item: pytest.Item) -> tuple[int, bool]:
        name = item.path.stem
        return LONGEST.index(name) if name in LONGEST else len(LONGEST), needs_server(item)

    items.sort(key=place)


def pytest_collection_finish(session: pytest.Session) -> None:
    # The libraries stay: no collection looks through their objects again. Opening another model makes one each time.
    gc.collect()
    gc.freeze()
    gc.enable()
    if any(map(needs_server, session.items)) and not session.config.option.collectonly:
        stack = session.config.stash[_running] = ExitStack()
        session.config.stash[_server] = stack.enter_context(starting_server(Path(os.environ["PREFECT_HOME"])))


def pytest_unconfigure(config: pytest.Config) -> None:
    config.stash.get(_running, ExitStack()).close()
    shutil.rmtree(HOME, ignore_errors=True)


@pytest.fixture(scope="session")
def prefect_server(pytestconfig: pytest.Config) -> Iterator[str]:
    """The API address of a real server of this session's own, in force for this process and those it starts."""
    from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    os.environ["PREFECT_API_URL"] = url = pytestconfig.stash[_server].ready()
    # Without heartbeats a flow ends a second earlier: their thread sleeps whole seconds.
    with temporary_settings({PREFECT_API_URL: url, PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        yield url
    del os.environ["PREFECT_API_URL"]


@pytest.fixture
def store_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that SUBLIM_STORE points to."""
    root = tmp_path / "store"
    monkeypatch.setenv("SUBLIM_STORE", str(root))
    return root


@pytest.fixture(scope="session")
def s3_port() -> Iterator[int]:
    """The port of a real S3 server of this session's own."""
    from tests.s3 import running_s3

    with running_s3() as port:
        yield port


@pytest.fixture
def s3_store(s3_port: int, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of an empty bucket; the environment says how to get there."""
    import boto3

    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{s3_port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_MAX_ATTEMPTS": "1",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    bucket = f"lab-{token_hex(4)}"
    boto3.client("s3", region_name="us-east-1").create_bucket(Bucket=bucket)
    return f"s3://{bucket}/results"


@pytest.fixture
def small_share(tmp_path: Path) -> Iterator[Path]:
    """Where a file system of one megabyte is mounted, until the test takes it away."""
    folder = tmp_path / "share"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"this machine lets us mount nothing: {done.stderr}")
    yield folder
    subprocess.run(["umount", str(folder)], check=False, capture_output=True)


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model, prepared once for a run's workers, or once for all where SUBLIM_TEST_MODELS names a folder."""
    from sublim.bases.prepare import prepare_model
    from sublim.files.locks import locked
    from sublim.models.config import PrepareModelConfig

    # A worker's own base folder lies in one that the run's workers share.
    base = tmp_path_factory.getbasetemp()
    run = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = Path(os.environ.get("SUBLIM_TEST_MODELS", run / "models"))
    prepared = folder / "smollm2"
    with locked(folder / "smollm2.lock"):
        if not prepared.is_dir():
            draft = Path(tempfile.mkdtemp(dir=folder))
            prepare_model(draft, PrepareModelConfig(), scratch=tmp_path_factory.mktemp("scratch"))
            draft.rename(prepared)
    return prepared


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One prepared tiny random model of each family: llama, qwen2, qwen3, gemma2, gemma3."""
    from sublim.bases.prepare import prepare_model
    from sublim.models.config import LocalModel, PrepareModelConfig
    from tests.tiny import FAMILIES, tiny_model

    folder = tmp_path_factory.mktemp("tiny")
    prepared = {family: folder / family for family in FAMILIES}
    for family, out in prepared.items():
        source = LocalModel(path=tiny_model(folder / f"{family}-published", family))
        out.mkdir()
        prepare_model(out, PrepareModelConfig(source=source), scratch=folder)
    return {**prepared}
