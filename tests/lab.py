"""A lab in one folder: a real Prefect server, the pools, workers as processes of their own, and runs given to them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

from flows.infra.pools import Pool, create
from tests.server import starting_server

ROOT = Path(__file__).parent.parent


class Lab:
    """A server that answers, and the environment of whatever uses it."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.url = folder, url
        self.store = folder / "store"
        self.environment = os.environ | {
            "PREFECT_API_URL": url,
            "PREFECT_HOME": str(folder / "home"),
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PREFECT_LOGGING_TO_API_ENABLED": "true",
            "PYTHONPATH": str(ROOT),
            "SUBLIM_STORE": str(self.store),
            "SUBLIM_HOME": str(folder / "sublim"),
        }

    def pool(self, name: str, **env: str) -> None:
        """A work pool whose runs find this lab's store."""
        create(name, Pool(about="for a test", env={"SUBLIM_STORE": str(self.store), **env}))

    def sublim(self, *arguments: str) -> str:
        """Runs the command and gives what it printed."""
        command = [sys.executable, "-m", "flows", *arguments]
        done = subprocess.run(command, env=self.environment, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @contextmanager
    def worker(
        self, pool: str, *arguments: str, limit: int = 1, name: str = "", **environment: str
    ) -> Generator["subprocess.Popen[bytes]"]:
        """`sublim worker` in a session of its own, ended as systemd would."""
        named = ("--name", name) if name else ()
        own = ("--pool", pool, "--limit", str(limit), *named, *arguments)
        command = [sys.executable, "-m", "flows", "worker", *own]
        log = self.folder / "workers.log"
        with log.open("ab") as file:
            process = subprocess.Popen(
                command,
                env=self.environment | environment,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        try:
            yield process
        finally:
            end(process)

    def hand_over(self, deployment: str, **parameters: Any) -> UUID:
        """Asks for a run of a deployment, without waiting for it."""
        run = run_deployment(deployment, parameters=parameters, timeout=0)
        assert isinstance(run, FlowRun)
        return run.id

    def run(self, run_id: UUID) -> FlowRun:
        """A run as the server knows it."""
        with get_client(sync_client=True) as client:
            return client.read_flow_run(run_id)

    def wait(self, run_id: UUID, *names: str, seconds: float = 120.0) -> FlowRun:
        """A run once it is in a state of one of these names."""
        until(lambda: self.state(run_id) in names, seconds, lambda: f"{self.state(run_id)}: {self.logs()}")
        return self.run(run_id)

    def state(self, run_id: UUID) -> str:
        """The name of a run's state."""
        state = self.run(run_id).state
        return (state.name or "") if state else ""

    def logs(self) -> str:
        """The last that the workers said."""
        return (self.folder / "workers.log").read_text()[-4000:]


def end(process: "subprocess.Popen[bytes]") -> None:
    """Ends a worker and what it runs."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def until(ask: Callable[[], Any], seconds: float = 60.0, told: Callable[[], str] = str) -> None:
    """Waits until something holds; fails with what is told otherwise."""
    deadline = time.monotonic() + seconds
    while not ask():
        assert time.monotonic() < deadline, told()
        time.sleep(0.2)


@contextmanager
def lab_at(folder: Path, *, ui: bool = False, port: int | None = None, database: str | None = None) -> Generator[Lab]:
    """A lab whose server this process uses, too."""
    with starting_server(folder / "server", ui=ui, port=port, database=database) as server:
        url = server.ready()
        with temporary_settings({PREFECT_API_URL: url, PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
            yield Lab(folder, url)
