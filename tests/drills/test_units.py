"""The units of deployments/systemd, started and stopped by their own lines, as systemd would but for the user."""

import ctypes
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.infra.prefect_api import responds
from sublim.store.folder import Store
from tests.lab import ROOT, until
from tests.postgres import for_prefect, running_postgres
from tests.server import free_port
from tests.test_deployments import standing_in

pytestmark = pytest.mark.slow

UNITS = ROOT / "deployments" / "systemd"
BIN = Path(sys.executable).parent
SMALL = {"p_active": [1.0], "seeds": [0], "batch_size": 32, "steps": 20}


def end_with_this_process() -> None:
    """Has the kernel end what is started with whoever starts it, even by SIGKILL."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


class Host:
    """A machine on which the places that the units name lie in one folder."""

    def __init__(self, folder: Path, **variables: str) -> None:
        self.folder, self.port = folder, free_port()
        (folder / "home").mkdir()
        (folder / "state").mkdir()  # StateDirectory
        own = {"PREFECT_SERVER_API_PORT": self.port, **variables}
        told = "".join(f"{name}={value}\n" for name, value in own.items())
        self.env = folder / "sublim.env"
        self.env.write_text(self.placed((UNITS / "sublim.env").read_text()) + told)
        self.plain = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin", "HOME": str(folder / "home")}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/api"

    def placed(self, text: str) -> str:
        """A text of the units with the places of this host."""
        for there, here in {
            "/srv/sublim/.venv/bin": str(BIN),
            "/srv/sublim-store": f"{self.folder}/store",
            "/srv/sublim": str(ROOT),
            "/var/lib/sublim": f"{self.folder}/state",
            "/etc/sublim.env": str(self.env) if hasattr(self, "env") else "",
            "127.0.0.1:4200": f"127.0.0.1:{self.port}",
        }.items():
            text = text.replace(there, here)
        return text

    def shell(self, line: str) -> str:
        """What a person does in a shell, by the README's second step."""
        script = f"set -a; . {self.env}; set +a; cd {ROOT}; export PATH={BIN}:$PATH; {line}"
        done = subprocess.run(["bash", "-ec", script], env=self.plain, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @contextmanager
    def unit(self, name: str, instance: str = "") -> Generator["subprocess.Popen[bytes]"]:
        """Starts a unit; stops it by SIGTERM to its main process, which has the unit's time to end all."""
        text = self.placed((UNITS / name).read_text()).replace("%i", instance).replace("%H", socket.gethostname())
        lines = re.findall(r"^(\w+)=(.*)$", text, re.M)
        own = [pair for key, value in lines if key == "Environment" for pair in shlex.split(value)]
        read = [self.env.read_text() for key, value in lines if key == "EnvironmentFile" and value == str(self.env)]
        own += [line for line in "\n".join(read).splitlines() if line and not line.startswith("#")]
        environment = self.plain | dict(pair.split("=", 1) for pair in own)
        of = dict(lines)
        with (self.folder / f"{name}{instance}.log").open("ab") as log:
            process = subprocess.Popen(
                shlex.split(of["ExecStart"]),
                env=environment,
                cwd=of["WorkingDirectory"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=end_with_this_process,
            )
        try:
            yield process
            process.send_signal(signal.SIGTERM)
            process.wait(float(of["TimeoutStopSec"]))
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def log(self, name: str) -> Callable[[], str]:
        """The last that a unit said."""
        return lambda: (self.folder / f"{name}.log").read_text()[-3000:]


def workers(pool: str) -> set[str]:
    """Names of the workers that ask for a pool's work."""
    with get_client(sync_client=True) as client:
        path = {"work_pool_name": pool}
        found = client.request("POST", "/work_pools/{work_pool_name}/workers/filter", path_params=path, json={})
    return {each["name"] for each in found.json() if each["status"] == "ONLINE"}


def test_units_make_a_lab_that_runs_what_it_is_given_and_stop_in_their_time(tmp_path: Path) -> None:
    (tmp_path / "driver").mkdir()
    here = socket.gethostname()
    with ExitStack() as stack:
        host = Host(
            tmp_path,
            # With SQLite, two workers on a busy machine had the server stand still for minutes.
            PREFECT_SERVER_DATABASE_CONNECTION_URL=for_prefect(stack.enter_context(running_postgres())),
            PREFECT_WORKER_QUERY_SECONDS="1",
            PYTHONPATH=str(ROOT),
            LD_LIBRARY_PATH=str(standing_in(tmp_path / "driver")),  # a lesser card and a good one
        )
        stack.enter_context(host.unit("sublim-server.service"))
        stack.enter_context(temporary_settings({PREFECT_API_URL: host.url}))
        until(lambda: responds(host.url), 90, host.log("sublim-server.service"))
        assert (tmp_path / "state" / "prefect").is_dir()
        host.shell("sublim pools && sublim deploy toy-models/cpu")
        with (
            host.unit("sublim-worker-cpu.service"),
            host.unit("sublim-worker@.service", "1"),
            host.unit("sublim-worker@.service", "0") as refusing,
        ):
            until(lambda: workers("cpu") == {f"{here}-cpu"}, 60, host.log("sublim-worker-cpu.service"))
            until(lambda: workers("a6000") == {f"{here}-gpu1"}, 60, host.log("sublim-worker@.service1"))
            assert refusing.wait(60) == 2
            assert "this is RTX 3090 with 24.0 GiB" in host.log("sublim-worker@.service0")()
            host.shell(f"prefect deployment run toy-models/cpu -p 'settings={json.dumps(SMALL)}' --watch")
    assert {manifest.artifact.stage for manifest in Store(tmp_path / "store").manifests()} >= {"train_superposition"}
