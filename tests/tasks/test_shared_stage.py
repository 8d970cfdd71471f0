"""Stages whose store is a bucket: two machines that share nothing but it and the Prefect server, and its outages."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flows.runs.record import recorded
from sublim.core.errors import StoreUnreachable, UserError
from sublim.store.bucket import SharedStore, connected
from sublim.store.opening import open_store
from tests.s3 import S3Proxy, proxy_to_s3
from tests.tasks.sample_stages import CountConfig, PickConfig, ShardsConfig
from tests.tasks.test_stage import chain, count, in_flow, messages, pick, shards, states

pytestmark = pytest.mark.usefixtures("prefect_server")
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def bucket_store(s3_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """SUBLIM_STORE is a bucket, mirrored in a folder of this test's own."""
    monkeypatch.setenv("SUBLIM_STORE", s3_store)
    monkeypatch.setenv("SUBLIM_CACHE", str(tmp_path / "here"))
    monkeypatch.setenv("SUBLIM_LEASE_SECONDS", "2")
    monkeypatch.setattr("tasks.job.RETRY_SECONDS", 0.1)
    return s3_store


@pytest.fixture
def proxy(s3_port: int, bucket_store: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Proxy]:
    with proxy_to_s3(s3_port) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy


@pytest.fixture
def lines() -> Iterator[list[logging.LogRecord]]:
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    names = ("prefect.task_runs", "prefect.flow_runs", "sublim")
    for name in names:
        logging.getLogger(name).addHandler(handler)
    yield records
    for name in names:
        logging.getLogger(name).removeHandler(handler)


@pytest.fixture
def start(bucket_store: str, tmp_path: Path) -> Iterator[Start]:
    """Starts the two sample stages on a machine of its own; what it says goes to `<name>.out` and `<name>.log`."""
    started: list[subprocess.Popen[str]] = []

    def start(name: str, *, upto: int = 6, pause: float = 0.0, **environment: str) -> "subprocess.Popen[str]":
        own = {"SUBLIM_CACHE": str(tmp_path / name), "HOME": str(tmp_path / name), "PREFECT_LOGGING_LEVEL": "INFO"}
        (tmp_path / name).mkdir(exist_ok=True)
        with (tmp_path / f"{name}.out").open("w") as out, (tmp_path / f"{name}.log").open("w") as log:
            command = [sys.executable, "-m", "tests.tasks.host", str(upto), str(pause)]
            process = subprocess.Popen(command, env=os.environ | own | environment, stdout=out, stderr=log, text=True)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def outcome(folder: Path, name: str) -> list[str]:
    return json.loads((folder / f"{name}.out").read_text().splitlines()[-1])


def until(ask: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not ask():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def shared() -> SharedStore:
    store = open_store()
    assert isinstance(store, SharedStore)
    return store


def test_two_machines_asked_for_the_same_build_it_once(start: Start, tmp_path: Path) -> None:
    both = [start("a", pause=1.0), start("b", pause=1.0)]
    assert [process.wait(90) for process in both] == [0, 0], (tmp_path / "a.log").read_text()
    found = sorted(outcome(tmp_path, name) for name in "ab")
    assert found in (
        [["count Cached", "pick Cached"], ["count Completed", "pick Completed"]],
        [["count Cached", "pick Completed"], ["count Completed", "pick Cached"]],
    )
    waiter = "a" if outcome(tmp_path, "a")[0] == "count Cached" else "b"
    builder = both["ba".index(waiter)].pid
    assert f"waiting: process {builder} on " in (tmp_path / f"{waiter}.log").read_text()
    # Of a chain that was found whole only the manifests came; what was made of a file needed that file.
    fetched = list((tmp_path / waiter).glob("*/count/*/payload"))
    assert bool(fetched) == (outcome(tmp_path, waiter)[1] == "pick Completed")


def test_machine_killed_while_it_builds_is_followed_by_another(start: Start, tmp_path: Path) -> None:
    dying = start("a", upto=600, pause=0.1)
    until(lambda: list((tmp_path / "a").glob("*/scratch/count/*/5.txt")))
    waiting = start("b", upto=600, pause=0.001)
    until(lambda: "waiting: process" in (tmp_path / "b.log").read_text())
    dying.send_signal(signal.SIGKILL)
    killed = time.monotonic()
    assert waiting.wait(60) == 0, (tmp_path / "b.log").read_text()
    assert time.monotonic() - killed < 30
    assert outcome(tmp_path, "b") == ["count Completed", "pick Completed"]
    assert "left an expired lease" in (tmp_path / "b.log").read_text()
    assert list(shared().bucket.list("locks/")) == []


def test_hit_made_on_one_machine_is_cached_on_another_without_its_files(
    start: Start, tmp_path: Path, prefect_server: str
) -> None:
    assert start("a").wait(60) == 0
    last, runs, _ = in_flow(lambda: pick(PickConfig(), numbers=count(CountConfig(upto=6))))
    assert states(runs) == ["count Cached", "pick Cached"]
    store = shared()
    assert list(store.root.glob("*/*/payload")) == []
    assert (store.payload(last) / "numbers.jsonl").read_text().split() == ['{"n":0}', '{"n":2}', '{"n":4}']
    assert [path.parent.parent.name for path in store.root.glob("*/*/payload")] == ["pick"]  # its inputs are not needed
    assert states(in_flow(lambda: shards(ShardsConfig(shards=1), numbers=last))[1]) == ["shards Completed"]


def test_machine_killed_between_payload_and_manifest_loses_nothing(start: Start, tmp_path: Path) -> None:
    assert start("a", SUBLIM_KILL_AT="before-manifest").wait(60) == -signal.SIGKILL
    assert list(shared().manifests()) == []
    assert [item.name for item in shared().bucket.list("count/")] != []
    assert start("a").wait(60) == 0
    assert outcome(tmp_path, "a") == ["count Cached", "pick Completed"]
    assert len(list(shared().manifests())) == 2


def test_store_that_goes_away_keeps_what_was_finished_and_stops_what_follows(
    proxy: S3Proxy, lines: list[logging.LogRecord]
) -> None:
    def rule(method: str, path: str) -> int | None:
        away.extend([path] if "/count/" in path and method == "PUT" else [])
        return 503 if away else None

    away: list[str] = []
    proxy.rule = rule
    with pytest.raises(StoreUnreachable, match=r"fails .503 SlowDown.: run again when it is back") as caught:
        in_flow(chain)
    assert states(caught.value.runs) == ["count Completed", "pick 2 Failed"]  # type: ignore[attr-defined]
    assert "it is kept here and is uploaded by the next `sublim run`, or `sublim store push`" in messages(lines)
    assert [record for record in lines if record.exc_info] == []
    assert [manifest.artifact.stage for manifest in shared().pending()] == ["count"]
    with pytest.raises(StoreUnreachable), recorded("sample", "none", "owl"):
        raise AssertionError("the run went on without its store")

    proxy.rule = lambda method, path: None
    with recorded("sample", "none", "owl"):
        pass
    assert shared().pending() == []
    assert states(in_flow(chain)[1]) == ["count Cached", "pick 2 Completed", "pick 3 Completed", "total Completed"]


def test_short_outage_costs_one_retry(proxy: S3Proxy) -> None:
    refused: list[str] = []

    def rule(method: str, path: str) -> int | None:
        if "/pick/" in path and not refused:
            refused.append(path)
            return 500
        return None

    proxy.rule = rule
    assert states(in_flow(chain)[1])[1] == "pick 2 Completed"
    assert refused


def test_store_that_refuses_stops_a_run_before_its_first_stage(proxy: S3Proxy) -> None:
    open_store()
    proxy.rule = lambda method, path: 403 if method == "PUT" else None  # may read, may not write
    with pytest.raises(UserError, match=r"refuses .403"), recorded("sample", "none", "owl"):
        raise AssertionError("the run went on without its store")
    assert list((open_store().root / "runs").glob("*")) == []


def test_connection_is_shared_by_the_copies_that_prefect_makes(bucket_store: str) -> None:
    import copy

    store = open_store()
    assert copy.deepcopy(store) is store
    assert connected.cache_info().currsize >= 1
