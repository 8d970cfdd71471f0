"""prefect.yaml, the pools it declares and the units: every flow has its deployments, nothing is said twice or wrong."""

import inspect
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
import yaml

from flows.command.pool import find_server, settle
from flows.infra.pools import Card, Pool, card_of, declared, environment_of, filled, lacking, template
from flows.registry import FLOWS
from flows.runs.settings import load_preset
from sublim.core.errors import UserError
from sublim.core.hardware import Gpu

ROOT = Path(__file__).parents[1]
UNITS = sorted((ROOT / "deployments" / "systemd").glob("*.service"))
SILENT = {"DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
GIB = 2**30
SHARED = ("flows.pipeline.flow:pipeline", "flows.lora_search.flow:lora_search")  # as many at once as there are workers
A6000 = Card(name="RTX A6000", memory_gib=48, capability="8.6")


class Strict(yaml.SafeLoader):
    """Refuses a key that is there twice, which YAML's own loader would let the last one win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"twice in one mapping: {sorted(keys)}"
        return super().construct_mapping(node, deep)


def deployments() -> list[dict[str, Any]]:
    return yaml.load((ROOT / "prefect.yaml").read_text(), Strict)["deployments"]


def test_every_flow_has_a_deployment_for_each_pool() -> None:
    found = Counter((each["entrypoint"], each["name"], each["work_pool"]["name"]) for each in deployments())
    flows = [entry.flow.replace(".", "/").replace(":", ".py:") for entry in FLOWS.values()]
    assert found == Counter((flow, pool, pool) for flow in flows for pool in declared())


@pytest.mark.parametrize("each", deployments(), ids=lambda each: f"{each['entrypoint']}-{each['name']}")
def test_parameters_are_the_flow_s_and_the_preset_exists(each: dict[str, Any]) -> None:
    [entry] = [e for e in FLOWS.values() if e.flow.replace(".", "/").replace(":", ".py:") == each["entrypoint"]]
    assert set(each["parameters"]) <= set(inspect.signature(resolve_name(entry.flow).fn).parameters)
    assert load_preset(entry.presets, each["parameters"]["preset"])
    assert each["tags"][0] == ("gpu" if each["name"] == "a6000" else "cpu")
    for schedule in each.get("schedules", []):
        assert schedule["active"] == "{{ $SUBLIM_SCHEDULES }}"
    assert each["concurrency_limit"]["collision_strategy"] == "ENQUEUE"  # the next waits, none is lost
    assert (each["concurrency_limit"]["limit"] == 1) == (entry.flow not in SHARED)


def test_schedules_are_off_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SUBLIM_REPO": str(ROOT), "SUBLIM_STORE": "s3://b/x", "SUBLIM_SCHEDULES": ""}.items():
        monkeypatch.setenv(name, value)
    settle()
    assert os.environ["SUBLIM_SCHEDULES"] == "false"
    monkeypatch.setenv("SUBLIM_SCHEDULES", "true")
    settle()
    assert os.environ["SUBLIM_SCHEDULES"] == "true"


def test_pools_give_their_runs_the_environment_that_is_declared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUBLIM_STORE", "/shared/store")
    monkeypatch.delenv("SUBLIM_REPORTS", raising=False)
    monkeypatch.setenv("HF_HOME", "")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted")
    pools = declared()
    made = {name: template(pool) for name, pool in pools.items()}
    gpu, cpu = (environment_of(made[name]) for name in ("a6000", "cpu"))
    assert gpu["TORCH_CUDA_ARCH_LIST"] == "8.6" == A6000.capability
    assert gpu["VLLM_WORKER_MULTIPROC_METHOD"] == "spawn"
    assert gpu["SUBLIM_STORE"] == cpu["SUBLIM_STORE"] == "/shared/store"
    assert cpu["CUDA_VISIBLE_DEVICES"] == ""
    for environment in (gpu, cpu):
        assert SILENT.items() <= environment.items()
        # Unset is another setting than empty.
        assert {"SUBLIM_REPORTS", "HF_HOME"}.isdisjoint(environment)
    assert (card_of(made["a6000"]), card_of(made["cpu"])) == (A6000, None)
    assert "planted" not in str(made)
    assert filled({"A": "{{ $SUBLIM_STORE }}/x", "B": "{{ $NO_SUCH_VARIABLE }}"}) == {"A": "/shared/store/x"}


@pytest.mark.parametrize(
    "text", [None, "", "definitions: {}", "definitions: [", "definitions: {pools: {cpu: {env: 1}}}"]
)
def test_a_prefect_yaml_that_defines_no_pools_is_told_in_one_line(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "prefect.yaml").write_text(text)
    with pytest.raises(UserError, match=r"prefect\.yaml (cannot be read|defines no pools)") as caught:
        declared(tmp_path / "prefect.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("prefect_server")
def test_a_deployment_overrides_single_variables_of_its_pool() -> None:
    import anyio
    from prefect.workers.process import ProcessJobConfiguration

    pool = template(Pool(about="", env={"TORCH_CUDA_ARCH_LIST": "8.6", "KEPT": "1"}))
    own = {"env": {"TORCH_CUDA_ARCH_LIST": "9.0"}}

    async def made() -> ProcessJobConfiguration:
        return await ProcessJobConfiguration.from_template_and_values(pool, own)

    assert anyio.run(made).env == {"TORCH_CUDA_ARCH_LIST": "9.0", "KEPT": "1"}


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (Gpu("RTX A6000", int(47.5 * GIB), (8, 6)), None),
        (Gpu("H100", 80 * GIB, (9, 0)), None),
        (Gpu("RTX 3090", 24 * GIB, (8, 6)), "RTX 3090 with 24.0 GiB"),
        (Gpu("Quadro RTX 8000", 48 * GIB, (7, 5)), "compute capability 7.5"),
        (None, "no GPU is visible"),
    ],
)
def test_a_card_is_held_against_what_the_pool_declares(found: Gpu | None, told: str | None) -> None:
    why = lacking(A6000, found)
    assert (why is None) == (told is None)
    assert told is None or told in (why or "")


DRIVER = """
#include <cstdlib>
#include <cstring>
// Two cards, of which CUDA_VISIBLE_DEVICES shows one: a lesser one and a good one.
static int chosen() { const char *shown = getenv("CUDA_VISIBLE_DEVICES"); return shown && *shown ? atoi(shown) : -1; }
extern "C" {
int cuInit(unsigned) { return chosen() < 0 ? 100 : 0; }
int cuDeviceGetCount(int *count) { *count = 1; return 0; }
int cuDeviceGet(int *device, int) { *device = 0; return 0; }
int cuDeviceGetName(char *name, int size, int) { strncpy(name, chosen() ? "RTX A6000" : "RTX 3090", size); return 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int) { *bytes = (chosen() ? 48ull : 24ull) << 30; return 0; }
int cuDeviceGetAttribute(int *value, int which, int) { *value = which == 75 ? 8 : 6; return 0; }
}
"""


def standing_in(folder: Path) -> Path:
    """A folder with a stand-in for the CUDA driver, for LD_LIBRARY_PATH."""
    source = folder / "driver.cpp"
    source.write_text(DRIVER)
    compiler = next(name for name in ("c++", "g++", "clang++") if shutil.which(name))
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(folder / "libcuda.so.1"), str(source)], check=True)
    return folder


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return standing_in(tmp_path_factory.mktemp("driver"))


@pytest.mark.usefixtures("prefect_server")
def test_a_worker_on_a_lesser_card_refuses_to_start_and_says_why(driver: Path, tmp_path: Path) -> None:
    from flows.infra.pools import create

    create("cards", Pool(about="for a test", card=A6000, env={"SUBLIM_STORE": str(tmp_path / "store")}))

    def refused(*options: str) -> str:
        command = [sys.executable, "-m", "flows", "worker", *options]
        environment = os.environ | {"LD_LIBRARY_PATH": str(driver), "PREFECT_HOME": str(tmp_path / "home")}
        # A worker that starts after all does not end by itself.
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert done.returncode == 2, done.stderr
        return done.stderr

    lesser = refused("--pool", "cards", "--gpu", "0")
    assert "its runs need a GPU like RTX A6000 (48 GiB, compute capability 8.6)" in lesser
    assert "this is RTX 3090 with 24.0 GiB, compute capability 8.6" in lesser
    assert "GPU 0" in lesser
    assert "name this worker's, as in --gpu 0" in refused("--pool", "cards")
    assert "no work pool 'crads' (has: " in refused("--pool", "crads", "--gpu", "1")


@pytest.mark.usefixtures("prefect_server")
def test_a_worker_on_a_good_card_sees_that_card_alone(driver: Path, tmp_path: Path) -> None:
    from flows.infra.pools import create

    create("good-cards", Pool(about="for a test", card=A6000, env={"SUBLIM_STORE": str(tmp_path / "store")}))
    # Prefect's worker takes this script's place, to tell what it would start with.
    (tmp_path / "prefect").mkdir()
    (tmp_path / "prefect" / "__init__.py").touch()
    (tmp_path / "prefect" / "__main__.py").write_text(
        "import os, sys\nprint(*sys.argv[1:], os.environ['CUDA_VISIBLE_DEVICES'], os.environ['CUDA_DEVICE_ORDER'])"
    )
    code = (
        "import os, sys\nfrom flows.__main__ import main\nexecv = os.execv\n"
        "def there(*command):\n    os.environ['PYTHONPATH'] = sys.argv[1]\n    execv(*command)\n"
        "os.execv = there\nmain(['worker', '--pool', 'good-cards', '--gpu', '1', '--name', 'w'])"
    )
    environment = os.environ | {"LD_LIBRARY_PATH": str(driver), "PREFECT_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "worker start --pool good-cards --name w --limit 1 1 PCI_BUS_ID"


def test_a_worker_without_a_server_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("SUBLIM_HOME", str(tmp_path))
    with pytest.raises(UserError, match="set PREFECT_API_URL to your lab's"):
        find_server()


def test_telemetry_is_off_wherever_a_server_a_worker_or_a_run_is_started() -> None:
    from flows.infra.server import _environment  # pyright: ignore[reportPrivateUsage]

    for unit in UNITS:
        told = dict(re.findall(r"(\w+)=(\S+)", "\n".join(re.findall(r"^Environment=(.*)$", unit.read_text(), re.M))))
        assert SILENT.items() <= told.items(), unit.name
    assert SILENT.items() <= _environment(Path("home"), 4200).items()
    made = (ROOT / "Makefile").read_text()
    for name, value in SILENT.items():
        assert f"export {name} = {value}" in made
        assert f"{name}={value}" in (ROOT / "deployments" / "systemd" / "sublim.env").read_text()
        assert os.environ[name] == value  # tasks/__init__ settles it for whatever runs a flow


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="a tool of systemd's")
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_units_are_what_systemd_understands(unit: Path, tmp_path: Path) -> None:
    for path in UNITS:
        text = path.read_text().replace("/srv/sublim/.venv/bin/", "/usr/bin/").replace("bin/prefect", "bin/env")
        (tmp_path / path.name).write_text(text.replace("bin/sublim", "bin/env"))
    name = unit.name.replace("@", "@0")
    command = ["systemd-analyze", "verify", "--man=no", str(tmp_path / name)]
    shutil.copyfile(tmp_path / unit.name, tmp_path / name) if "@" in name else None
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert [line for line in done.stderr.splitlines() if unit.stem.partition("@")[0] in line] == []
