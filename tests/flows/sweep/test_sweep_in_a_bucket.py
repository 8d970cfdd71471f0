"""Sweeps of two machines that share nothing but a bucket: frozen plans and finished cells are known to both."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.__main__ import main
from flows.pipeline.flow import pipeline
from flows.runs.settings import build
from flows.sweep.cells import cells_of, remember, remembered, results_of
from flows.sweep.config import SweepConfig
from flows.sweep.preregistration import frozen_path, verdict
from sublim.store.bucket import SharedStore, connected
from sublim.store.opening import open_store
from tests.flows.sweep.test_sweep import ROOT, counted, fast, ran, table
from tests.lab import lab_at
from tests.postgres import for_prefect, running_postgres
from tests.sublim.store.test_bucket import made

On = Callable[[str], SharedStore]


@pytest.fixture
def on(s3_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> On:
    """Makes this process a machine of a name, with a folder of its own, and gives its store."""

    def on(machine: str) -> SharedStore:
        monkeypatch.setenv("SUBLIM_STORE", s3_store)
        monkeypatch.setenv("SUBLIM_CACHE", str(tmp_path / machine))
        connected.cache_clear()
        store = open_store()
        assert isinstance(store, SharedStore)
        return store

    return on


def test_plan_frozen_on_one_machine_holds_on_another_that_has_no_file_of_it(
    on: On, published: Path, tmp_path: Path
) -> None:
    tree: dict[str, Any] = {"settings": fast(published), "target": ["fox"], "seeds": [10, 11]}
    plan = tmp_path / "plan.yaml"
    plan.write_text(json.dumps(tree))
    on("a")
    assert main(["run", "sweep", "--freeze", str(plan), "--dry-run"]) == 0
    frozen = json.loads(frozen_path(plan).read_text())
    b = on("b")

    def held(tree: dict[str, Any], frozen: str = "") -> tuple[bool | None, str]:
        config = build(SweepConfig, {**tree, **({"frozen": frozen} if frozen else {})})
        return verdict(config, cells_of(config), b, [])[:2]

    # A deployed run has the settings alone.
    followed, told = held(tree)
    assert followed is True
    assert frozen["frozen"] in told
    followed, told = held({**tree, "seeds": [10]}, frozen["digest"])
    assert followed is False
    assert told.endswith("seeds: frozen [10, 11], now [10].")
    # Freezing it here under another name is no later plan.
    (tmp_path / "same.yaml").write_text(json.dumps(tree))
    on("c")
    assert main(["run", "sweep", "--freeze", str(tmp_path / "same.yaml"), "--dry-run"]) == 0
    assert json.loads((tmp_path / "same.frozen.json").read_text()) == frozen


def test_cell_that_one_machine_finished_is_known_to_another_until_a_result_is_forgotten(on: On) -> None:
    a = on("a")
    compared = [("owl", made(a, 1, stage="compare")), ("owl 64", made(a, 2, stage="compare"))]
    remember(a, "cell", compared)
    b = on("b")
    assert remembered(b, "cell") == results_of(compared)
    assert not list(b.root.glob("*/*/payload"))
    a.forget(next(a.manifests()))
    assert remembered(b, "cell") is None
    assert remembered(b, "another") is None


@pytest.mark.slow
def test_sweep_over_a_pool_costs_a_machine_that_did_not_run_it_one_task_run_a_cell(
    on: On, s3_store: str, published: Path, tmp_path: Path
) -> None:
    cells = {"where": {"kind": "pool", "deployment": "pipeline/cells", "poll_seconds": 1.0}, "seeds_per_cell": 1}
    first_host = on("a")
    with running_postgres() as url, lab_at(tmp_path / "lab", database=for_prefect(url)) as lab:
        lab.pool("cells", SUBLIM_STORE=s3_store, SUBLIM_CACHE=str(tmp_path / "worker"))
        pipeline.from_source(source=str(ROOT), entrypoint="flows/pipeline/flow.py:pipeline").deploy(
            name="cells", work_pool_name="cells", print_next_steps=False, ignore_warnings=True
        )
        with lab.worker("cells", limit=2):
            first = ran(published, **cells)
        assert (first["cells"], first["cached"], first["failures"]) == (2, 0, [])
        made = {manifest.artifact.key for manifest in first_host.manifests()}
        second_host = on("b")
        began = time.monotonic()
        again, runs = counted(lambda: ran(published, **cells))
        print(f"on another machine, without a worker: {time.monotonic() - began - 2:.1f} s")  # `counted` waits for 2
    assert (again["cells"], again["cached"], again["failures"]) == (2, 2, [])
    joined = {"compare": 1, "compare_mmlu_pro": 1, "compare_shift": 1, "tabulate_sweep": 1}
    assert runs == {"sweep": 1, "record_cell": 2} | joined
    assert {stage["state"] for stage in again["stages"]} == {"Cached"}
    assert {manifest.artifact.key for manifest in second_host.manifests()} == made
    assert table(again).equals(table(first))
