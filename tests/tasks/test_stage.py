import contextlib
import logging
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import TaskRun

from sublim.core.config import Config
from sublim.core.errors import UserError
from sublim.store.manifest import Artifact
from sublim.store.opening import open_store
from tasks.job import asset_key
from tasks.processes import StageFailed, StageKilled, one_process
from tasks.stage import RunLog, Stage, StageRun, run_log
from tests.tasks.proxy import Proxy, proxy_to
from tests.tasks.sample_stages import CountConfig, FailConfig, PickConfig, ShardsConfig

SAMPLE = "tests.tasks.sample_stages"
count = Stage("count", f"{SAMPLE}:count")
pick = Stage("pick", f"{SAMPLE}:pick")
total = Stage("total", f"{SAMPLE}:total")
shards = Stage("shards", f"{SAMPLE}:shards")
who = Stage("who", f"{SAMPLE}:who")
fail = Stage("fail", f"{SAMPLE}:fail")

pytestmark = pytest.mark.usefixtures("prefect_server", "store_root")
Records = list[logging.LogRecord]


@pytest.fixture
def lines() -> Iterator[Records]:
    """What Prefect and the stages log during a test."""
    records: Records = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    names = ("prefect.task_runs", "prefect.flow_runs", "prefect.transactions", "sublim")
    for name in names:
        logging.getLogger(name).addHandler(handler)
    yield records
    for name in names:
        logging.getLogger(name).removeHandler(handler)


def messages(lines: Records) -> str:
    return "\n".join(record.getMessage() for record in lines)


def in_flow(body: Callable[[], Any]) -> tuple[Any, list[StageRun], UUID]:
    """Runs `body` as a flow: what it returned, its stage runs, the id of the flow run."""
    log = RunLog()
    ids: list[UUID] = []

    @flow(name="sample")
    def sample() -> Any:
        from prefect.runtime import flow_run

        ids.append(UUID(flow_run.get_id()))
        token = run_log.set(log)
        try:
            return body()
        finally:
            run_log.reset(token)

    try:
        return sample(), log.stages, ids[0]
    except BaseException as error:
        error.runs, error.id = log.stages, ids[0]  # type: ignore[attr-defined]
        raise


def states(runs: list[StageRun]) -> list[str]:
    return [f"{run.stage} {run.label} {run.state}".replace("  ", " ") for run in runs]


def post(url: str, path: str, body: dict[str, Any]) -> Any:
    return httpx.post(f"{url}{path}", json=body).raise_for_status().json()


def until(ask: Callable[[], Any], seconds: float = 30.0) -> Any:
    """What `ask` gives once it gives something: the server digests events with a delay."""
    deadline = time.monotonic() + seconds
    while not (answer := ask()):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return answer


def chain(upto: int = 6, below: int = 1000, pause: float = 0.0) -> Artifact:
    numbers = count(CountConfig(upto=upto, pause=pause))
    parts = [pick(PickConfig(of=of, below=below), label=str(of), numbers=numbers) for of in (2, 3)]
    return total(Config(), parts=parts)


def payload(artifact: Artifact) -> Path:
    return open_store().payload(artifact)


def notes(artifact: Artifact) -> dict[str, Any]:
    manifest = open_store().manifest(artifact.stage, artifact.key)
    assert manifest is not None
    return manifest.notes


def test_second_run_is_cached_and_the_server_says_so(prefect_server: str) -> None:
    first, runs, _ = in_flow(chain)
    assert states(runs) == ["count Completed", "pick 2 Completed", "pick 3 Completed", "total Completed"]
    assert (payload(first) / "total.txt").read_text() == str(0 + 2 + 4 + 0 + 3)
    again, runs, flow_run = in_flow(chain)
    assert again == first
    assert states(runs) == ["count Cached", "pick 2 Cached", "pick 3 Cached", "total Cached"]
    assert [run.content for run in runs][-1] == first.content

    def cached() -> Any:
        asked = {
            "flow_runs": {"id": {"any_": [str(flow_run)]}},
            "task_runs": {"state": {"name": {"any_": ["Cached"]}}},
        }
        found = post(prefect_server, "/task_runs/filter", asked)
        return found if len(found) == 4 else None

    assert {run["name"] for run in until(cached)} == {"count", "pick 2", "pick 3", "total"}


def test_stage_is_keyed_by_content_so_that_equal_bytes_stop_a_rerun() -> None:
    in_flow(chain)
    _, runs, _ = in_flow(lambda: chain(below=900))  # another recipe for the same numbers
    assert states(runs) == ["count Cached", "pick 2 Completed", "pick 3 Completed", "total Cached"]
    _, runs, _ = in_flow(lambda: chain(below=4))
    assert states(runs) == ["count Cached", "pick 2 Completed", "pick 3 Completed", "total Completed"]
    _, runs, _ = in_flow(lambda: chain(upto=6, pause=0.01))  # a run-only field
    assert {run.state for run in runs} == {"Cached"}


def test_order_and_names_of_inputs_version_and_stage_are_in_the_key() -> None:
    a = Artifact(content="a" * 64, stage="x", key="1" * 64)
    b = Artifact(content="b" * 64, stage="x", key="2" * 64)
    moved = Artifact(content="a" * 64, stage="y", key="3" * 64)
    keys = [
        stage.key(config, inputs)
        for stage in (total, pick, Stage("total", total.function, version=2))
        for config in (PickConfig(), PickConfig(of=3))
        for inputs in ({"p": [a, b]}, {"p": [b, a]}, {"p": [a]}, {"p": a}, {"q": a}, {"p": None}, {"p": {"a": a}}, {})
    ]
    assert len(set(keys)) == len(keys)
    assert pick.key(PickConfig(), {"p": a}) == pick.key(PickConfig(), {"p": moved})


def test_damaged_artifacts_are_noticed_told_and_made_again(lines: Records) -> None:
    def everything() -> list[Artifact]:
        numbers = count(CountConfig())
        return [numbers, *(shards(ShardsConfig(shards=n, size=10), numbers=numbers) for n in (1, 2, 3))]

    before, _, _ = in_flow(everything)
    (payload(before[0]) / "numbers.jsonl").unlink()
    os.truncate(payload(before[1]) / "0.bin", 3)
    (payload(before[2]) / "1.bin").write_bytes(b"\x00" * 10)
    lines.clear()
    after, runs, _ = in_flow(everything)
    assert states(runs) == ["count Completed", "shards Completed", "shards Completed", "shards Cached"]
    assert after == before
    assert all(open_store().problem(artifact, deep=True) is None for artifact in after)
    text = messages(lines)
    assert "cached result refused, running again: count/" in text
    assert "numbers.jsonl is missing" in text
    assert "0.bin has 3 bytes instead of 10" in text
    assert "1.bin has changed since it was written" in text
    assert {run.state for run in in_flow(everything)[1]} == {"Cached"}


def test_deep_verification_repairs_what_size_and_time_hide(monkeypatch: pytest.MonkeyPatch) -> None:
    artifact, _, _ = in_flow(lambda: shards(ShardsConfig(shards=1, size=10)))
    file = payload(artifact) / "0.bin"
    times = file.stat().st_atime_ns, file.stat().st_mtime_ns
    file.write_bytes(b"\x01" * 10)
    os.utime(file, ns=times)
    assert in_flow(lambda: shards(ShardsConfig(shards=1, size=10)))[1][0].state == "Cached"
    monkeypatch.setenv("SUBLIM_VERIFY", "deep")
    assert in_flow(lambda: shards(ShardsConfig(shards=1, size=10)))[1][0].state == "Completed"
    assert file.read_bytes() == b"\x00" * 10


def test_artifact_without_a_record_is_adopted(lines: Records, store_root: Path) -> None:
    artifact, _, _ = in_flow(lambda: count(CountConfig()))
    written = (payload(artifact) / "numbers.jsonl").stat()
    for record in (store_root / "records").iterdir():
        record.unlink()
    (open_store().scratch("count", artifact.key) / "left").write_text("")
    again, runs, _ = in_flow(lambda: count(CountConfig()))
    assert again == artifact
    assert states(runs) == ["count Completed"]
    assert (payload(artifact) / "numbers.jsonl").stat() == written
    assert "was finished by an earlier run; its record is restored" in messages(lines)
    assert not list((store_root / "scratch" / "count").iterdir())
    assert in_flow(lambda: count(CountConfig()))[1][0].state == "Cached"


def test_forgotten_artifact_is_made_again_and_what_follows_stays_cached() -> None:
    in_flow(chain)
    store = open_store()
    store.forget(next(manifest for manifest in store.manifests() if manifest.artifact.stage == "count"))
    assert states(in_flow(chain)[1]) == ["count Completed", "pick 2 Cached", "pick 3 Cached", "total Cached"]


def test_label_with_braces_is_a_name_like_any_other() -> None:
    label = "sampling {'max_tokens': 16}"
    assert states(in_flow(lambda: count(CountConfig(), label=label))[1]) == [f"count {label} Completed"]


def test_mistake_of_the_user_rises_as_it_was_and_is_logged_in_one_line(lines: Records, store_root: Path) -> None:
    def body() -> None:
        count(CountConfig())
        fail(FailConfig(how="own"), label="owl")

    with pytest.raises(UserError, match=r"^raise the limit$") as caught:
        in_flow(body)
    assert type(caught.value).__name__ == "OwnError"
    assert states(caught.value.runs) == ["count Completed", "fail owl Failed"]  # type: ignore[attr-defined]
    assert any("raise the limit" in record.getMessage() for record in lines)
    assert [record for record in lines if record.exc_info or record.exc_text] == []
    assert [record.getMessage() for record in lines if record.levelno == logging.WARNING] == []
    assert not (store_root / "fail").exists()
    assert not list((store_root / "drafts").iterdir())


def test_bug_rises_with_its_traceback(lines: Records) -> None:
    with pytest.raises(ValueError, match="a bug of ours"):
        in_flow(lambda: fail(FailConfig(how="bug")))
    places = [record.exc_info[2] for record in lines if record.exc_info]
    assert places
    files = set()
    for place in places:
        while place is not None:
            files.add(Path(place.tb_frame.f_code.co_filename).name)
            place = place.tb_next
    assert "sample_stages.py" in files


def test_failed_stage_is_run_again_next_time() -> None:
    for _ in range(2):
        with pytest.raises(UserError):
            in_flow(lambda: fail(FailConfig(how="user")))


def test_full_disk_is_one_line_that_names_the_store(store_root: Path) -> None:
    with pytest.raises(UserError, match=f"no space is left for {store_root}"):
        in_flow(lambda: fail(FailConfig(how="disk")))
    assert not (store_root / "fail").exists()
    assert not list((store_root / "drafts").iterdir())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True, text=True
    )
    if mount.returncode:
        pytest.skip(f"this machine lets us mount nothing: {mount.stderr}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def fill(disk: Path) -> Path:
    """Leaves no byte free on `disk`; gives the file to remove again."""
    with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 512)
    return disk / "filler"


def test_disk_that_fills_up_leaves_finished_stages_and_nothing_half_written(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch, lines: Records
) -> None:
    monkeypatch.setenv("SUBLIM_STORE", str(small_disk / "store"))
    done, _, _ = in_flow(lambda: count(CountConfig()))
    with pytest.raises(UserError, match=f"no space is left for {small_disk}/store: free some and run again"):
        in_flow(lambda: shards(ShardsConfig(shards=30)))
    assert [record for record in lines if record.exc_info] == []
    store = open_store()
    assert [manifest.artifact for manifest in store.manifests()] == [done]
    assert store.problem(done, deep=True) is None
    assert not (store.root / "shards").exists()
    assert not list((store.root / "drafts").iterdir())

    filler = fill(small_disk)
    with pytest.raises(UserError, match=f"no space is left for {small_disk}/store"):
        in_flow(lambda: pick(PickConfig(), numbers=done))
    assert in_flow(lambda: count(CountConfig()))[1][0].state == "Cached"
    filler.unlink()
    for shard in (store.root / "scratch").rglob("*.bin"):
        shard.unlink()
    assert in_flow(lambda: pick(PickConfig(), numbers=done))[1][0].state == "Completed"


def test_stages_on_a_gpu_run_in_a_process_of_their_own_which_a_group_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUBLIM_ISOLATE", "1")

    def body() -> list[Artifact]:
        alone = who(Config())
        with one_process():
            first = who(Config(), before=alone)
            return [alone, first, count(CountConfig(upto=3)), who(Config(), before=count(CountConfig(upto=3)))]

    artifacts, _, _ = in_flow(body)
    alone, first, _, last = [notes(artifact).get("pid") for artifact in artifacts]
    assert os.getpid() not in (alone, first)
    assert alone != first
    assert first == last


def test_killed_stage_is_tried_once_more_and_resumes(monkeypatch: pytest.MonkeyPatch, lines: Records) -> None:
    monkeypatch.setenv("SUBLIM_ISOLATE", "1")
    monkeypatch.setattr("tasks.job.RETRY_SECONDS", 0.1)
    artifact, runs, _ = in_flow(lambda: fail(FailConfig(how="killed once")))
    assert states(runs) == ["fail Completed"]
    assert (payload(artifact) / "done").exists()
    assert "signal SIGKILL" in messages(lines)
    assert "fail resumes from its scratch folder" in messages(lines)
    with pytest.raises(StageKilled, match="SIGKILL"):
        in_flow(lambda: fail(FailConfig(how="killed")))
    assert messages(lines).count("Retry 1/1") == 2


@pytest.mark.parametrize("how", ["own", "bug", "disk", "notes", "gpu memory", "memory"])
def test_what_another_try_would_not_mend_is_tried_once(
    how: str, monkeypatch: pytest.MonkeyPatch, lines: Records, tmp_path: Path
) -> None:
    monkeypatch.setenv("SUBLIM_ISOLATE", "1")
    monkeypatch.setattr("tasks.job.RETRY_SECONDS", 0.1)
    monkeypatch.setattr("tasks.processes.VMSTAT", tmp_path / "vmstat")  # which the kernel writes, or the stage here
    (tmp_path / "vmstat").write_text("pgfault 8\noom_kill 3\noom_kill_other 9\n")
    with pytest.raises(StageFailed if how in ("bug", "notes") else UserError) as caught:
        in_flow(lambda: fail(FailConfig(how=how, counter=str(tmp_path / "vmstat"))))
    assert states(caught.value.runs) == ["fail Failed"]  # type: ignore[attr-defined]
    assert "Retry" not in messages(lines)
    assert "memory" not in how or "lower the batch size" in str(caught.value)


@pytest.mark.parametrize("isolate", ["0", "1"])
def test_stage_whose_network_failed_is_tried_once_more(isolate: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUBLIM_ISOLATE", isolate)
    monkeypatch.setattr("tasks.job.RETRY_SECONDS", 0.1)
    _, runs, _ = in_flow(lambda: fail(FailConfig(how="network once")))
    assert states(runs) == ["fail Completed"]


def test_log_lines_and_errors_of_a_process_reach_the_run(monkeypatch: pytest.MonkeyPatch, lines: Records) -> None:
    monkeypatch.setenv("SUBLIM_ISOLATE", "1")
    in_flow(lambda: count(CountConfig(upto=3)))
    assert "counted to 3" in messages(lines)
    with pytest.raises(UserError, match=r"^raise the limit$"):
        in_flow(lambda: fail(FailConfig(how="own")))
    with pytest.raises(UserError, match="no space is left for"):
        in_flow(lambda: fail(FailConfig(how="disk")))


def test_stage_is_declared_as_an_asset_with_what_it_was_made_from(prefect_server: str) -> None:
    def body() -> tuple[Artifact, Artifact]:
        numbers = count(CountConfig(upto=5))
        return numbers, pick(PickConfig(), numbers=numbers)

    (numbers, picked), _, _ = in_flow(body)

    def event() -> Any:
        asked = {
            "filter": {
                "event": {"name": ["prefect.asset.materialization.succeeded"]},
                "resource": {"id": [asset_key("pick", picked.key)]},
            }
        }
        return post(prefect_server, "/events/filter", asked)["events"]

    found = until(event)
    related = [item["prefect.resource.id"] for item in found[0]["related"]]
    assert asset_key("count", numbers.key) in related
    assert asset_key("count", numbers.key) == f"sublim://count/{numbers.key[:12]}"


def test_progress_of_a_long_stage_is_shown_in_prefect(prefect_server: str) -> None:
    _, _, flow_run = in_flow(lambda: (count(CountConfig(upto=3)), count(CountConfig(upto=18, pause=0.25))))
    asked = {"artifacts": {"type": {"any_": ["progress"]}, "flow_run_id": {"any_": [str(flow_run)]}}}
    (artifact,) = post(prefect_server, "/artifacts/filter", asked)  # none for the short stage
    assert artifact["description"] == "count: counting"
    assert artifact["data"] == 100.0


def test_manifest_says_how_a_stage_ran() -> None:
    (numbers, picked), _, flow_run = in_flow(
        lambda: (numbers := count(CountConfig(upto=5, pause=0.01)), pick(PickConfig(of=3), numbers=numbers))
    )
    manifest = open_store().manifest("pick", picked.key)
    assert manifest is not None
    assert manifest.config == {"of": 3, "below": 1000}
    assert manifest.inputs == {"numbers": numbers.model_dump()}
    assert manifest.provenance.flow_run == str(flow_run)
    assert manifest.provenance.packages["prefect"]
    first = open_store().manifest("count", numbers.key)
    assert first is not None
    assert first.config == {"upto": 5}
    assert first.notes == {"resumed": 0}
    assert first.provenance.seconds >= 0.05


def test_store_of_a_newer_version_stops_the_run_before_anything_is_written(store_root: Path) -> None:
    store_root.mkdir()
    (store_root / "store.json").write_text('{"format": 99}')
    with pytest.raises(UserError, match="update sublim"):
        in_flow(lambda: count(CountConfig()))
    assert [path.name for path in store_root.iterdir()] == ["store.json"]


def test_server_that_hangs_does_not_hold_up_a_stage(prefect_server: str, store_root: Path) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    def hang_until_the_stage_is_done(proxy: Proxy) -> None:
        until(lambda: list(store_root.glob("scratch/count/*/14.txt")))  # 3.5 s on: progress is being sent
        proxy.flowing.clear()
        until(lambda: list(store_root.glob("count/*/manifest.json")))
        proxy.flowing.set()

    with proxy_to(int(prefect_server.split(":")[2].removesuffix("/api"))) as proxy:
        hang = threading.Thread(target=hang_until_the_stage_is_done, args=(proxy,))
        hang.start()
        with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{proxy.port}/api"}):
            _, runs, _ = in_flow(lambda: count(CountConfig(upto=40, pause=0.25)))
        hang.join()
    assert states(runs) == ["count Completed"]
    (manifest,) = open_store().manifests()
    assert manifest.provenance.seconds < 18


def task_runs(flow_run_id: UUID, count: int) -> list[TaskRun]:
    """The task runs of a flow run, once the server knows of so many with their states."""
    wanted = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id]))
    deadline = time.monotonic() + 60
    with get_client(sync_client=True) as client:
        while True:
            found = client.read_task_runs(flow_run_filter=wanted)
            if len(found) == count and all(run.state and run.state.is_completed() for run in found):
                return found
            assert time.monotonic() < deadline, found
            time.sleep(0.2)


def test_the_ui_draws_an_edge_for_every_artifact_that_a_stage_reads() -> None:
    def body() -> None:
        numbers = count(CountConfig(upto=7))
        low, high = pick(PickConfig(below=3), numbers=numbers), pick(PickConfig(below=6), numbers=numbers)
        total(CountConfig(upto=7), parts=[low, high, low])

    for _ in range(2):  # computed, then from the cache
        runs = task_runs(in_flow(body)[2], 4)
        names = {run.id: run.name for run in runs}
        edges = [(names[each.id], run.name) for run in runs for each in run.task_inputs.get("wait_for", [])]
        assert sorted(edges) == [("count", "pick")] * 2 + [("pick", "total")] * 2
