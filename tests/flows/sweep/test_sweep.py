"""Sweeps end to end: cells that share, cells that fail alone, frozen plans, and a fan-out to a real worker."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from flows.__main__ import main
from flows.runs.settings import build, load_preset, merge, presets
from flows.sweep.cells import Measured, cells_of, check_cells, looked_up
from flows.sweep.config import SweepConfig
from flows.sweep.early_looks import written
from flows.sweep.flow import load_config, printed, sweep
from flows.sweep.preregistration import differences, plan_digest
from sublim.core.errors import UserError
from sublim.stats.corrections import holm
from sublim.stats.intervals import paired_t
from sublim.stats.power import detectable
from sublim.store.folder import Store
from sublim.store.manifest import Artifact, Provenance
from tests.lab import until

ROOT = Path(__file__).parent.parent.parent


def fast(published: Path) -> dict[str, Any]:
    """Pipelines of seconds: no model is run or trained but a tiny one, for two updates."""
    return {
        "model": {"kind": "local", "path": str(published)},
        "teacher": {"kind": "prompt"},
        "carrier": {"prompts": 16, "constraint": None},
        "filter": {"keep": 8},
        "student": {"updates": 2, "batch_size": 4, "warmup_updates": 1, "max_length": 600, "keep": [1]},
        "evaluation": {"samples": 2, "updates": [], "mmlu_pro": {"per_category": 1}},
        "backend": {"kind": "fake", "invalid": 0.1},
    }


def ran(published: Path, **changes: Any) -> dict[str, Any]:
    tree = {"settings": fast(published), "target": ["owl"], "seeds": [0, 1], **changes}
    return sweep(preset="quickstart", settings=tree)


def counted(run: Callable[[], dict[str, Any]]) -> tuple[dict[str, Any], dict[str, int]]:
    """What a call gives, and the task and flow runs of every name that the server has heard of since."""
    from prefect.client.orchestration import get_client

    since = {"start_time": {"after_": datetime.now(UTC).isoformat()}}
    outcome = run()
    with get_client(sync_client=True) as client:

        def names(kind: str) -> list[str]:
            answer = client.request("POST", f"/{kind}_runs/filter", json={f"{kind}_runs": since})
            return [found["name"].split()[0] for found in answer.raise_for_status().json()]

        # The server hears of task runs a little later, and of one too many as late as of the others.
        until(lambda: len(names("task")) >= len(outcome["stages"]), 30, lambda: str(names("task")))
        time.sleep(2)
        return outcome, dict(Counter([*names("flow"), *names("task")]))


def table(outcome: dict[str, Any]) -> pl.DataFrame:
    return pl.read_parquet(outcome["table"])


def assert_level(outcome: dict[str, Any], level: float) -> None:
    """Both blocks' or both seeds' margins, in the interval and the power of that level."""
    [row] = table(outcome).filter(pl.col("metric") == "margin").to_dicts()
    pairs = pl.read_parquet(Path(outcome["table"]).with_name("pairs.parquet")).filter(pl.col("row") == 0)["effect"]
    units = pairs.to_numpy().reshape(2, -1).mean(axis=1)
    expected = paired_t(units, level)
    assert (row["low"], row["high"]) == pytest.approx((expected.low, expected.high))
    assert row["detectable"] == pytest.approx(detectable(2, float(units.std(ddof=1)), level=level))


@pytest.fixture(scope="module")
def module_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(autouse=True)
def shared_store(module_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One store for all tests here, so that each stands on the cache of the first."""
    monkeypatch.setenv("SUBLIM_STORE", str(module_store))


def test_cells_are_the_product_of_the_axes(published: Path) -> None:
    config = build(
        SweepConfig,
        {
            "settings": fast(published),
            "target": "owl, wolf",
            "arms": ["teacher", "second_draw", "other_teacher"],
            "seeds": [0, 1, 2],
            "grid": {"student.rank": [4, 8]},
            "seeds_per_cell": 2,
        },
    )
    cells = cells_of(config)
    # 2 ranks x 2 targets x 2 arms of their own x 2 groups of seeds
    assert len(cells) == 16
    assert {cell.seeds for cell in cells} == {(0, 1), (2,)}
    assert {cell.config.student.method.rank for cell in cells} == {4, 8}
    assert {cell.config.arms for cell in cells} == {(), ("second_draw",)}
    assert cells[0].name == "owl, teacher, rank 4, block 0, seeds 0, 1"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"grid": {"student.rnk": [4]}}, r"did you mean .*student\.method\.rank"),
        ({"grid": {"seeds": [[0]]}}, "has an axis of its own"),
        ({"grid": {"student.rank": []}}, "needs values"),
        ({"grid": {"student.rank": ["many"]}}, "rank"),
        ({"arms": ["teachr"]}, "there is no arm 'teachr'"),
        ({"target": ["owl", "owl"]}, "named twice"),
        ({"seeds": [1, 1]}, "named twice"),
        ({"preset": "quickstrt"}, "did you mean quickstart"),
    ],
)
def test_a_grid_that_cannot_be_built_is_refused(published: Path, change: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        cells_of(build(SweepConfig, {"settings": fast(published), **change}))


@pytest.mark.parametrize("name", presets("sweep"))
def test_every_preset_is_whole(name: str) -> None:
    config = build(SweepConfig, load_preset("sweep", name))
    assert config.about
    assert cells_of(config)


def test_plans_are_alike_whatever_shares_a_process_and_differ_by_what_is_run(published: Path) -> None:
    def digest_of(**changes: Any) -> str:
        config = build(SweepConfig, {"settings": fast(published), "seeds": [0, 1], **changes})
        return plan_digest(config, cells_of(config))

    assert digest_of() == digest_of(seeds_per_cell=1) == digest_of(where={"kind": "pool"}, about="other words")
    assert len({digest_of(), digest_of(seeds=[0, 2]), digest_of(primary="rate"), digest_of(target="wolf")}) == 4
    assert differences({"seeds": [0], "a": {"b": 1}}, {"seeds": [0, 1], "a": {"b": 1}}) == [
        "seeds: frozen [0], now [0, 1]"
    ]


@pytest.mark.usefixtures("prefect_server")
class TestSweep:
    """In this order: the first sweep fills the store that the others reuse."""

    def test_cells_become_one_table_with_intervals_tests_and_capability(
        self, published: Path, module_store: Path
    ) -> None:
        outcome = ran(published, seeds_per_cell=1, target="owl,wolf", arms=["teacher", "other_teacher"])
        assert (outcome["cells"], outcome["failures"]) == (4, [])
        rows = table(outcome)
        owl = rows.filter((pl.col("target") == "owl") & (pl.col("arm") == "teacher") & (pl.col("metric") == "margin"))
        assert owl["units"].to_list() == [2]
        assert owl["p_flips_smallest"].to_list() == [0.5]
        assert owl["corrected"].to_list() == ["holm over 2"]
        assert owl["p_corrected"][0] >= owl["p"][0]
        every = rows.filter(pl.col("p").is_not_null())
        assert every["p_holm"].to_list() == pytest.approx(holm(every["p"].to_list()))
        assert {*every["comparisons"]} == {len(every)}
        assert f"holm over all {len(every)} tests here" in printed(outcome)
        other = rows.filter((pl.col("arm") == "other_teacher") & (pl.col("metric") == "margin"))
        assert sorted(zip(other["target"], other["of"], strict=True)) == [("owl", "wolf"), ("wolf", "owl")]
        (specific,) = outcome["specificity"]
        gamma, parts = specific["gamma"], specific["targets"]
        assert (gamma["units"], gamma["unit"], gamma["arrangements"]) == (2, "seed", 2)
        margins = rows.filter((pl.col("arm") == "teacher") & (pl.col("metric") == "margin"))
        for target, estimate, student in margins.select("target", "estimate", "student").iter_rows():
            # Each cell has controls of its own, whose rows answer the prompts that its teacher answered too.
            assert parts[target]["total"]["estimate"] == pytest.approx(estimate)
            others = other.filter(pl.col("target") == target)["student"][0]
            assert parts[target]["specific"]["estimate"] == pytest.approx(student - others)
        assert gamma["estimate"] == pytest.approx(sum(each["specific"]["estimate"] for each in parts.values()) / 2)
        assert "γ over owl, wolf" in printed(outcome)
        drawn = Path(outcome["report"]).with_name("specific-0.svg").read_text(encoding="utf-8")
        assert "students of wolf, on owl: " in drawn
        assert "Students by targets" in Path(outcome["report"]).read_text(encoding="utf-8")
        letters = rows.filter(pl.col("metric") == "letter_logprob")
        assert letters["estimate"].null_count() == 0
        assert "generated" in rows["metric"].str.split("_").list.last().to_list()
        folder = Path(outcome["report"]).parent
        assert {"effects.svg", "cost.svg", "table.csv", "table.parquet", "pairs.parquet", "report.html"} <= {
            path.name for path in folder.iterdir()
        }
        assert "exploratory" in printed(outcome)

    def test_effects_of_single_seeds_join_to_what_one_pipeline_of_all_seeds_gives(self, published: Path) -> None:
        apart = table(ran(published, seeds_per_cell=1))
        together = table(ran(published))
        assert apart.equals(together)

    def test_a_cell_whose_keys_are_all_present_costs_one_task_run(self, published: Path) -> None:
        outcome, runs = counted(lambda: ran(published, seeds_per_cell=1))
        assert runs == {"sweep": 1, "record_cell": 2, "compare": 1, "compare_mmlu_pro": 1, "compare_shift": 1} | {
            "tabulate_sweep": 1
        }
        assert outcome["cached"] == outcome["cells"] == 2
        stages = [stage["stage"] for stage in outcome["stages"]]
        assert stages.count("record_cell") == 2
        # One stage joins the seeds' likings, one their marks and one their shifts; one makes the table.
        joined = ["compare", "compare_mmlu_pro", "compare_shift"]
        assert sorted(stages) == [*joined, "record_cell", "record_cell", "tabulate_sweep"]
        assert {stage["state"] for stage in outcome["stages"]} == {"Cached"}

    def test_looking_up_runs_nothing(self, published: Path) -> None:
        config = load_config("quickstart", None, {"settings": fast(published), "target": "owl", "seeds": [0]})
        (cell,) = cells_of(config)
        found = looked_up(cell)
        assert found is not None
        other = load_config("quickstart", None, {"settings": fast(published), "target": "owl", "seeds": [77]})
        assert looked_up(*cells_of(other)) is None

    def test_a_failed_cell_fails_alone_and_says_why_in_the_table(self, published: Path) -> None:
        outcome = ran(published, grid={"filter.low": [0, 999], "evaluation.sampling": [{"max_tokens": 16}]})
        assert outcome["cells"] == 2
        (failed,) = outcome["failures"]
        assert outcome["failed"] == 1
        assert "999" in failed["cell"]
        assert "wanted" in failed["reason"]
        rows = table(outcome).filter(pl.col("metric") == "margin").sort("filter.low")
        assert rows["estimate"].is_null().to_list() == [False, True]
        lost = rows.filter(pl.col("estimate").is_null())
        assert "wanted" in lost["reason"][0]
        assert "1 of 1 cells failed" in lost["reason"][0]
        assert "missing: " in printed(outcome)

    def test_a_damaged_result_is_found_out_and_its_cell_runs_again(self, published: Path, module_store: Path) -> None:
        tree = {"settings": fast(published), "target": "owl", "seeds": [0, 1]}
        (cell,) = cells_of(load_config("quickstart", None, tree))
        found = looked_up(cell)
        assert found is not None
        path = Store(module_store).payload(found[0].artifact) / "comparison.json"
        kept = path.read_bytes()
        path.write_bytes(kept[:-2])
        outcome = ran(published, level=0.8)
        assert outcome["failures"] == []
        assert path.read_bytes() == kept
        assert_level(outcome, 0.8)  # not the .95 of the cell's own comparison
        assert "80 % intervals" in Path(outcome["report"]).read_text(encoding="utf-8")

    def test_blocks_are_the_units_of_a_joined_effect(self, published: Path) -> None:
        outcome = ran(published, blocks=[0, 1], seeds_per_cell=1, level=0.8)
        assert_level(outcome, 0.8)
        rows = table(outcome).filter(pl.col("metric") == "margin")
        assert (rows["units"][0], rows["pairs"][0]) == (2, 4)

    def test_a_run_follows_the_plan_that_was_frozen_before_its_first_result(
        self, published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], module_store: Path
    ) -> None:
        plan = tmp_path / "plan.yaml"
        settings = {"settings": fast(published), "target": ["fox"], "seeds": [10, 11]}
        plan.write_text(json.dumps(settings))
        assert main(["run", "sweep", "--freeze", str(plan), "--dry-run"]) == 0
        assert "nothing was run" in capsys.readouterr().out
        assert (tmp_path / "plan.frozen.json").exists()
        time.sleep(1.1)  # times are kept to the second
        assert main(["run", "sweep", "--config", str(plan), "--json"]) == 0
        outcome = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert outcome["plan"]["followed"] is True
        assert "frozen before its first result" in Path(outcome["report"]).read_text(encoding="utf-8")
        # Freezing what was frozen already is no change; results do not speak against it.
        assert main(["run", "sweep", "--freeze", str(plan), "--dry-run", "--json"]) == 0
        # A plan that was changed afterwards is refused by --freeze, and told by a run.
        plan.write_text(json.dumps(settings | {"seeds": [10]}))
        assert main(["run", "sweep", "--freeze", str(plan)]) == 2
        assert "changed after it was frozen" in capsys.readouterr().err
        assert main(["run", "sweep", "--config", str(plan), "--json"]) == 0
        outcome = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert outcome["plan"]["followed"] is False
        assert "seeds: frozen [10, 11], now [10]" in outcome["plan"]["about"]

    def test_a_plan_whose_results_exist_cannot_be_frozen(
        self, published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        plan = tmp_path / "late.yaml"
        once_more = merge(fast(published), {"evaluation": {"samples": 3}})
        # Seen already, seen for one seed beside another that nobody has trained, seen when fewer answers were sampled.
        for settings, seeds in ((fast(published), [0, 1]), (fast(published), [77, 1]), (once_more, [0, 1])):
            plan.write_text(json.dumps({"settings": settings, "target": ["owl"], "seeds": seeds}))
            assert main(["run", "sweep", "--freeze", str(plan)]) == 2
            assert "results of this plan exist already" in capsys.readouterr().err
            assert not (tmp_path / "late.frozen.json").exists()

    def test_a_pool_without_its_deployment_is_refused(self, published: Path) -> None:
        with pytest.raises(UserError, match="the server has no deployment pipeline/nowhere"):
            ran(published, where={"kind": "pool", "deployment": "pipeline/nowhere"})


@contextmanager
def worker(pool: str, environment: dict[str, str], log: Path) -> Iterator[None]:
    """A real process worker of `pool`."""
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--limit", "2"]
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=file, stderr=file, start_new_session=True)
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.mark.slow
def test_cells_fan_out_to_a_worker_and_one_fails_alone(
    prefect_server: str, published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUBLIM_STORE", str(tmp_path / "store"))
    environment = os.environ | {
        "PREFECT_API_URL": prefect_server,
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PYTHONPATH": str(ROOT),
        "SUBLIM_REPO": str(ROOT),
    }
    deployed = tmp_path / "prefect.yaml"
    deployed.write_text(
        json.dumps(
            {
                "name": "sublim",
                "pull": [{"prefect.deployments.steps.set_working_directory": {"directory": str(ROOT)}}],
                "deployments": [
                    {
                        "name": "cells",
                        "entrypoint": "flows/pipeline/flow.py:pipeline",
                        "work_pool": {"name": "cells", "job_variables": {"working_dir": str(ROOT)}},
                    }
                ],
            }
        )
    )

    def prefect(*arguments: str) -> None:
        command = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    prefect("work-pool", "create", "cells", "--type", "process")
    prefect("deploy", "--all", "--prefect-file", str(deployed))
    pool = {"kind": "pool", "deployment": "pipeline/cells", "poll_seconds": 1.0}
    with worker("cells", environment, tmp_path / "worker.log"):
        outcome = ran(published, where=pool, grid={"filter.low": [0, 999]})
    log = (tmp_path / "worker.log").read_text()[-2000:]
    assert outcome["cells"] == 4, log
    assert outcome["failed"] == 2, (outcome["failures"], log)
    assert all("999" in each["cell"] and "wanted" in each["reason"] for each in outcome["failures"])
    # What the workers made is found again without one, by a sweep that would hand its cells to them.
    again = ran(published, where=pool, grid={"filter.keep": [8]})
    assert (again["cells"], again["cached"], again["failed"]) == (2, 2, 0)
    # And it is what this process makes of the same cells.
    monkeypatch.setenv("SUBLIM_STORE", str(tmp_path / "own"))
    here = ran(published, grid={"filter.keep": [8]})
    assert table(here).drop("reason").equals(table(again).drop("reason"))


def test_cell_results_are_read_as_comparisons(published: Path) -> None:
    """The seam to the pipeline: labels of comparisons name target, arm and updates."""
    from flows.sweep.cells import results_of

    def artifact(stage: str) -> Artifact:
        return Artifact(content="c", stage=stage, key="k" * 64)

    found = results_of(
        [
            ("owl", artifact("compare")),
            ("owl 64", artifact("compare")),
            ("owl shuffled_within 16", artifact("compare")),
            ("owl", artifact("compare_mmlu_pro")),
        ]
    )
    assert [(each.arm, each.updates) for each in found if each.artifact.stage == "compare"] == [
        ("teacher", None),
        ("teacher", 64),
        ("shuffled_within", 16),
    ]
    assert [each.artifact.stage for each in found].count("compare_mmlu_pro") == 1


def test_a_comparison_is_as_old_as_the_first_answer_of_its_students(tmp_path: Path) -> None:
    """One pair asked before the plan, the comparison of all pairs made after it: the plan came too late."""
    store = Store(tmp_path).create()

    def made(stage: str, hour: int, **inputs: Any) -> dict[str, str]:
        key = f"{hour:02d}{stage.encode().hex()}".ljust(64, "0")
        with store.draft(stage, key) as draft:
            (draft / "payload/file").write_text(key)
            at = {"started": f"2026-01-01T{hour:02d}:00:00+00:00", "seconds": 0, "packages": {}, "python": ""}
            known = Provenance(commit=None, dirty=None, host="", device="", **at)  # pyright: ignore
            common = {"version": 1, "config": {}, "notes": {}, "provenance": known}
            return store.commit(draft, stage=stage, key=key, inputs=inputs, **common).model_dump()

    scores = [made("score", hour, asked=made("ask", hour)) for hour in (3, 1, 2)]
    compared = Artifact.model_validate(made("compare", 5, students=scores[:2], controls=scores[2:]))
    assert written(store, Measured("teacher", None, compared)).startswith("2026-01-01T01")
    # The base's own numbers and students are every target's: only the comparison is this one's.
    assert written(store, Measured("second_draw", None, compared)).startswith("2026-01-01T05")


def test_what_a_cell_cannot_run_is_named(published: Path) -> None:
    settings = {"model": {"kind": "local", "path": str(published)}}
    config = build(SweepConfig, {"settings": settings, "preset": "gemma-2-9b-a6000"})
    cells = cells_of(config)
    with pytest.raises(UserError, match="cell owl, teacher, block 0"):
        check_cells(cells)
