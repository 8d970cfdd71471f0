"""A Prefect server that asks for a password: every command works with it, and nothing that is written holds it."""

import json
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterator

import pytest
from prefect.settings import PREFECT_API_AUTH_STRING, temporary_settings

from tests.drills.test_drills import tasks_of
from tests.flows.infra.test_secrets import files
from tests.lab import ROOT, Lab, lab_at, until

pytestmark = pytest.mark.slow

PASSWORD = "lab:pl4nt3d-password"
ENCODED = b64encode(PASSWORD.encode())[:-4]  # as it is sent
SMALL = {"p_active": [1.0], "seeds": [0], "batch_size": 32, "steps": 20}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_SERVER_API_AUTH_STRING", PASSWORD)
        with (
            lab_at(tmp_path_factory.mktemp("lab")) as lab,
            temporary_settings({PREFECT_API_AUTH_STRING: PASSWORD}),
        ):
            patch.delenv("PREFECT_SERVER_API_AUTH_STRING")
            lab.environment.pop("PREFECT_SERVER_API_AUTH_STRING")
            lab.environment |= {"PREFECT_API_AUTH_STRING": PASSWORD, "CUDA_VISIBLE_DEVICES": ""}
            yield lab


def test_every_command_works_with_the_password_and_writes_it_nowhere(lab: Lab) -> None:
    small = [part for name, value in SMALL.items() for part in ("--set", f"{name}={json.dumps(value)}")]
    said = [lab.sublim("run", "toy-models", *small, "--json")]
    outcome = json.loads(said[0].splitlines()[-1])
    assert {stage["state"] for stage in outcome["stages"]} == {"Completed"}
    said += [lab.sublim("pools"), lab.sublim("deploy", "toy-models/cpu")]
    with lab.worker("cpu"):
        run = lab.hand_over("toy-models/cpu", preset="quickstart", settings=SMALL)
        assert lab.wait(run, "Completed", "Failed", "Crashed").run_count == 1
        assert lab.state(run) == "Completed", lab.logs()
    # The server hears of the ends of task runs a little later.
    until(lambda: {state for _, state in tasks_of(run)} == {"Cached"}, 20, lambda: str(tasks_of(run)))
    written = files(lab.folder) | {"output": "\n".join(said).encode()}
    assert any(name.endswith("prefect.db") for name in written)
    assert any(name.endswith("report.html") for name in written)
    assert any(name.endswith("manifest.json") for name in written)
    assert any(name.endswith("workers.log") for name in written)
    assert [name for name, content in written.items() if b"pl4nt3d" in content or ENCODED in content] == []


@pytest.mark.parametrize("password", ["", "lab:wrong-pl4nt3d"])
@pytest.mark.parametrize("command", ["run toy-models", "pools", "deploy", "worker --pool cpu"])
def test_without_the_password_one_line_says_so(lab: Lab, password: str, command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "flows", *command.split()],
        env=lab.environment | {"PREFECT_API_AUTH_STRING": password},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert (done.stdout, done.stderr.count("\n")) == ("", 1)
    assert "PREFECT_API_AUTH_STRING" in done.stderr
    assert "pl4nt3d" not in done.stderr
