import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from flows.__main__ import main
from sublim.core.errors import StoreRefused, StoreUnreachable, UserError
from sublim.store.bucket import SharedStore, connected
from sublim.store.bucket_layout import read_marker
from sublim.store.bucket_upkeep import clean_bucket, damage_in_bucket, drop_copies
from sublim.store.leases import Lease
from sublim.store.manifest import Artifact, Provenance
from sublim.store.opening import open_store
from sublim.store.s3 import PART, Bucket
from tests.s3 import S3Proxy, proxy_to_s3

FILES = {"rows.jsonl": b'{"n": 1}\n', "deep/er/weights": bytes(range(256)) * 40, "empty": b""}
Host = Callable[[str], SharedStore]


@pytest.fixture
def proxy(s3_port: int, s3_store: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Proxy]:
    """Stands between this test and the server."""
    with proxy_to_s3(s3_port) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy


@pytest.fixture
def host(s3_store: str, tmp_path: Path) -> Host:
    """A machine of a name: a folder of its own and nothing shared but the bucket."""

    def host(name: str) -> SharedStore:
        bucket = Bucket(s3_store)
        read_marker(bucket)
        store = SharedStore(bucket, tmp_path / name)
        store.create()
        return store

    return host


def made(store: SharedStore, number: int = 1, files: dict[str, bytes] = FILES, stage: str = "pick") -> Artifact:
    """Commits an artifact whose key depends on `number` alone."""
    key = f"{number:x}" * 64
    with store.draft(stage, key) as draft:
        for name, content in files.items():
            (draft / "payload" / name).parent.mkdir(parents=True, exist_ok=True)
            (draft / "payload" / name).write_bytes(content)
        provenance = Provenance(
            commit=None, dirty=None, packages={}, python="", host="", device="", started="2026-01-01", seconds=0
        )
        return store.commit(
            draft, stage=stage, key=key, version=1, config={}, inputs={}, notes={}, provenance=provenance
        )


def read(store: SharedStore, artifact: Artifact) -> dict[str, bytes]:
    payload = store.payload(artifact)
    return {name: (payload / name).read_bytes() for name in FILES}


def told(lines: list[str]) -> Callable[[str], None]:
    return lines.append


@contextmanager
def claim(store: SharedStore, number: int = 1, lines: list[str] | None = None) -> Iterator[Artifact | None]:
    tell = told(lines if lines is not None else [])
    with store.claimed("pick", f"{number:x}" * 64, 1, deep=False, tell=tell) as found:
        yield found


def test_what_one_machine_made_is_known_to_another_before_its_files_come(host: Host) -> None:
    a, b = host("a"), host("b")
    artifact = made(a)
    assert b.find("pick", artifact.key) == artifact
    assert b.problem(artifact) is None
    assert not (b.directory("pick", artifact.key) / "payload").exists()
    assert read(b, artifact) == FILES
    assert b.problem(artifact, deep=True) is None
    times = [(store.payload(artifact) / "rows.jsonl").stat().st_mtime_ns for store in (a, b)]
    assert times[0] == times[1]  # so that the copy need not be hashed before it is believed
    assert not list((b.root / "scratch").glob("*/*"))
    assert [manifest.artifact for manifest in host("c").manifests()] == [artifact]


def test_manifest_goes_last_so_that_half_an_upload_is_no_artifact(host: Host, proxy: S3Proxy) -> None:
    proxy.rule = lambda method, path: 500 if method == "PUT" and path.endswith("manifest.json") else None
    a, b = host("a"), host("b")
    artifact = made(a)
    assert a.problem(artifact) is None  # nothing finished is lost
    assert a.pending() != []
    assert b.find("pick", artifact.key) is None
    assert any("weights" in path for method, path in proxy.seen if method == "PUT")
    proxy.rule = lambda method, path: None
    proxy.seen.clear()
    a.ready()
    assert a.pending() == []
    assert not any("weights" in path for method, path in proxy.seen if method == "PUT")  # it was there already
    assert read(b, artifact) == FILES


def test_first_of_two_that_built_one_key_counts(host: Host) -> None:
    a, b = host("a"), host("b")
    first = made(a, files=FILES)
    late = made(b, files={**FILES, "rows.jsonl": b'{"n": 2}\n'})  # as a GPU may round otherwise
    assert late == first
    assert read(b, late) == FILES == read(a, first)
    assert b.problem(first, deep=True) is None
    assert damage_in_bucket(a, next(a.manifests())) == []


def test_interrupted_fetch_goes_on_where_it_was(host: Host, proxy: S3Proxy) -> None:
    big = {"big": os.urandom(3 * PART + 17), "small": b"x"}
    artifact = made(host("a"), files=big)
    b = host("b")
    reads: list[str] = []

    def rule(method: str, path: str) -> int | None:
        if method != "GET" or not path.endswith(("/big", "/small")):
            return None
        reads.append(path)
        return 503 if len(reads) > 2 else None

    proxy.rule = rule
    with pytest.raises(StoreUnreachable):
        b.payload(artifact)
    assert not (b.directory("pick", artifact.key) / "payload").exists()
    proxy.rule = lambda method, path: None
    proxy.seen.clear()
    assert (b.payload(artifact) / "big").read_bytes() == big["big"]
    assert len([path for method, path in proxy.seen if path.endswith(("/big", "/small"))]) == 3


def test_large_file_goes_up_in_parts_and_is_checked(host: Host, proxy: S3Proxy) -> None:
    a = host("a")
    artifact = made(a, files={"big": os.urandom(2 * PART + 1)})
    assert len([path for method, path in proxy.seen if method == "PUT" and "partNumber" in path]) == 3
    assert damage_in_bucket(a, next(a.manifests())) == []
    assert host("b").problem(artifact, deep=True) is None


def test_answer_that_breaks_off_is_asked_for_again(host: Host, proxy: S3Proxy) -> None:
    artifact = made(host("a"))
    b = host("b")
    cut: list[str] = []

    def rule(method: str, path: str) -> str | None:
        if method == "GET" and path.endswith("weights") and not cut:
            cut.append(path)
            return "cut"
        return None

    proxy.rule = rule
    assert read(b, artifact) == FILES
    assert cut


def test_damage_in_the_bucket_is_noticed_and_says_what_to_do(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = host("a"), host("b")
    artifact = made(a)
    under = a.objects(artifact)
    a.bucket.put(f"{under}/deep/er/weights", b"y" * len(FILES["deep/er/weights"]), anyway=True)
    with pytest.raises(UserError, match=f"sublim store forget pick {artifact.key[:12]}"):
        b.payload(artifact)
    assert not (b.directory("pick", artifact.key) / "payload").exists()
    a.bucket.delete(f"{under}/rows.jsonl")
    (manifest,) = a.manifests()
    assert sorted(damage_in_bucket(a, manifest)) == [
        f"{under}/deep/er/weights has another checksum in the store",
        f"{under}/rows.jsonl is missing in the store",
    ]


def test_damaged_copy_is_fetched_again_and_not_made_again(host: Host) -> None:
    a = host("a")
    artifact = made(a)
    (a.payload(artifact) / "rows.jsonl").write_bytes(b"other")
    with claim(a) as found:
        assert found == artifact
    assert a.problem(artifact) is None
    assert read(a, artifact) == FILES


def test_one_of_two_machines_builds_and_the_other_waits_and_finds(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUBLIM_LEASE_SECONDS", "1")
    a, b = host("a"), host("b")
    building, lines = threading.Event(), list[str]()

    def build() -> Artifact:
        with claim(a) as found:
            assert found is None
            building.set()
            time.sleep(4.5)  # longer than a lease lasts: it is renewed
            return made(a)

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(build)
        building.wait()
        with claim(b, lines=lines) as found:
            assert found == first.result()
    assert lines == [f"waiting: process {os.getpid()} on {os.uname().nodename} is building pick-v1-{'1' * 32}"]
    assert list(a.bucket.list("locks/")) == []


def test_lease_of_a_dead_holder_ends_by_the_servers_clock(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUBLIM_LEASE_SECONDS", "1")
    a, b = host("a"), host("b")
    dead = Lease(a.bucket, "locks/x.json")
    assert dead.take()
    other = Lease(b.bucket, "locks/x.json")
    monkeypatch.setattr(time, "time", lambda: 4e9)  # a waiter whose clock is a century ahead takes nothing early
    assert not other.take()
    monkeypatch.undo()
    deadline = time.monotonic() + 10
    while not other.take():
        assert time.monotonic() < deadline
        time.sleep(0.2)
    with other.renewed():
        assert not Lease(a.bucket, "locks/x.json").take()
    assert Lease(a.bucket, "locks/x.json").take()


def test_lease_whose_answer_was_lost_is_still_ones_own(
    host: Host, proxy: S3Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    a = host("a")
    lost: list[str] = []

    def rule(method: str, path: str) -> str | None:
        if method == "PUT" and "locks/" in path and not lost:
            lost.append(path)
            return "lost"
        return None

    proxy.rule = rule
    assert Lease(a.bucket, "locks/x.json").take()
    assert len(lost) == 1


def test_holder_that_lost_its_lease_does_no_harm(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUBLIM_LEASE_SECONDS", "1")
    a, b = host("a"), host("b")
    with claim(a) as found:
        assert found is None
        a.bucket.delete(f"locks/pick-v1-{'1' * 32}.json")  # as if it had slept through its time
        with claim(b) as other:
            assert other is None
            first = made(b, files={**FILES, "rows.jsonl": b"b was faster"})
        assert made(a) == first
    assert (a.payload(first) / "rows.jsonl").read_bytes() == b"b was faster"


@pytest.mark.parametrize(
    ("rule", "told", "again"),
    [
        (403, "refuses .403 AccessDenied.: check AWS_ACCESS_KEY_ID", False),
        (500, "fails .500 InternalError.: run again", True),
        (3.0, "cannot be reached .ReadTimeoutError.", True),
        ("lost", "cannot be reached", True),
        ("unconditional", "ignores conditional writes", False),
    ],
)
def test_server_that_will_not_do_is_told_in_one_line_and_is_never_a_miss(
    host: Host, proxy: S3Proxy, monkeypatch: pytest.MonkeyPatch, rule: int | float | str, told: str, again: bool
) -> None:
    monkeypatch.setenv("SUBLIM_S3_SECONDS", "1")
    a = host("a")
    proxy.rule = lambda method, path: rule
    with pytest.raises(UserError, match=told) as caught:
        a.ready()
    assert "\n" not in str(caught.value)
    assert again == (isinstance(caught.value, StoreUnreachable) and not isinstance(caught.value, StoreRefused))
    if rule != "unconditional":
        with pytest.raises(StoreUnreachable):
            a.find("pick", "ab" * 32)
        with pytest.raises(StoreUnreachable), claim(a):
            pass


def test_what_is_wrong_with_an_address_is_said_without_its_secrets(
    s3_store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(address: str, **environment: str) -> str:
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            with pytest.raises(UserError) as caught:
                open_store(address)
        assert "hunter2" not in str(caught.value)
        assert caught.value.__cause__ is None
        return str(caught.value)

    assert "there is no bucket nobucket" in refused("s3://nobucket/x")
    assert "without a key" in refused("s3://me:hunter2@bucket/x")
    assert "holds a user or password" in refused("s3://b/x", AWS_ENDPOINT_URL="http://me:hunter2@127.0.0.1:1")
    assert "cannot be reached" in refused("s3://b/x", AWS_ENDPOINT_URL="http://127.0.0.1:9", AWS_SECRET="hunter2")
    assert "not an address" in refused("s3://b/x", AWS_ENDPOINT_URL="hunter2")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    connected.cache_clear()
    assert "set AWS_ACCESS_KEY_ID" in refused(
        s3_store, AWS_EC2_METADATA_DISABLED="true", AWS_SHARED_CREDENTIALS_FILE="/dev/null", AWS_CONFIG_FILE="/dev/null"
    )


def test_forgetting_is_for_all_machines(host: Host) -> None:
    a, b = host("a"), host("b")
    artifact = made(a)
    assert read(b, artifact) == FILES
    a.forget(next(a.manifests()))
    assert list(a.bucket.list("pick/")) == []
    assert list(a.bucket.list("locks/")) == []
    assert b.find("pick", artifact.key) is None  # although its files lie there
    assert list(b.manifests()) == []
    with claim(b) as found:
        assert found is None
    assert b.find("pick", artifact.key) is None


def test_result_that_was_made_anew_elsewhere_is_not_found_by_the_old_copy_here(host: Host) -> None:
    a, b = host("a"), host("b")
    old = made(a)
    assert read(b, old) == FILES
    a.forget(next(a.manifests()))
    new = made(a, files={**FILES, "rows.jsonl": b"mended"})
    assert b.find("pick", old.key) is None
    with claim(b) as found:
        assert found == new
    assert b.find("pick", old.key) == new
    assert (b.payload(new) / "rows.jsonl").read_bytes() == b"mended"


@pytest.mark.parametrize("size", [1000, PART + 1])
def test_bytes_that_change_on_the_way_up_are_refused_by_the_server(host: Host, proxy: S3Proxy, size: int) -> None:
    a = host("a")
    proxy.rule = lambda method, path: "flip" if method == "PUT" and "/big" in path else None
    artifact = made(a, files={"big": bytes(size)})
    assert a.pending() != []
    assert host("b").find("pick", artifact.key) is None
    proxy.rule = lambda method, path: None
    a.ready()
    assert (host("b").payload(artifact) / "big").read_bytes() == bytes(size)


def test_gc_removes_what_no_manifest_names_and_spare_copies_here(host: Host, proxy: S3Proxy) -> None:
    a, b = host("a"), host("b")
    kept = made(a, 1)
    proxy.rule = lambda method, path: 500 if method == "PUT" and path.endswith("manifest.json") else None
    cut = made(b, 2)
    proxy.rule = lambda method, path: None
    Lease(a.bucket, "locks/dead.json").take()
    assert clean_bucket(a) == []  # younger than a day: it may be on its way
    a.bucket.client.create_multipart_upload(Bucket=a.bucket.bucket, Key=f"{a.bucket.prefix}pick/{'9' * 12}/big")
    assert len(clean_bucket(a, age=-5, dry_run=True)) == len(FILES) + 2
    assert len(clean_bucket(a, age=-5)) == len(FILES) + 2
    assert clean_bucket(a, age=-5) == []
    assert drop_copies(a, age=3600) == []
    assert [path for path, _ in drop_copies(a, age=-1)] == [f"pick/{kept.key[:12]}/payload"]
    assert drop_copies(b, age=-1) == []  # the only copy of `cut` is here
    assert read(a, kept) == FILES
    assert b.problem(cut, deep=True) is None
    b.ready()
    assert read(a, cut) == FILES


def test_gc_keeps_what_a_manifest_of_a_newer_version_names(host: Host) -> None:
    a = host("a")
    artifact = made(a)
    name = f"pick/{artifact.key[:12]}/manifest.json"
    found = a.bucket.get(name)
    assert found is not None
    newer = found.body.replace(b'"format": 1', b'"format": 99')
    assert newer != found.body
    a.bucket.put(name, newer, anyway=True)
    assert clean_bucket(a, age=-5) == []


def test_another_store_under_an_old_address_does_not_meet_the_old_ones_cache(
    s3_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUBLIM_CACHE", str(tmp_path / "cache"))
    first = open_store(s3_store)
    assert isinstance(first, SharedStore)
    artifact = made(first)
    for item in list(first.bucket.list()):
        first.bucket.delete(item.name)
    connected.cache_clear()
    second = open_store(s3_store)
    assert second.root.parent == first.root.parent == tmp_path / "cache"
    assert second.root != first.root
    assert second.find("pick", artifact.key) is None
    assert (first.directory("pick", artifact.key) / "payload" / "rows.jsonl").exists()


def test_commands_know_both_sides(
    s3_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], proxy: S3Proxy
) -> None:
    monkeypatch.setenv("SUBLIM_STORE", s3_store)
    monkeypatch.setenv("SUBLIM_CACHE", str(tmp_path / "cache"))
    store = open_store()
    assert isinstance(store, SharedStore)

    def said(*arguments: str) -> str:
        assert main(["store", *arguments]) in (0, 1)
        return capsys.readouterr().out

    artifact = made(store)
    assert "here and in the store" in said("ls")
    drop_copies(store, age=-1)
    assert "  in the store" in said("ls")
    assert "1 artifacts hashed, 0 damaged" in said("verify")
    proxy.rule = lambda method, path: 503 if method == "PUT" else None
    made(store, 2)
    proxy.rule = lambda method, path: None
    assert "here, not uploaded yet" in said("ls")
    assert "1 artifacts uploaded" in said("push")
    store.bucket.delete(f"{store.objects(artifact)}/rows.jsonl")
    text = said("verify")
    assert "rows.jsonl is missing in the store: `sublim store forget pick" in text
    assert "2 artifacts hashed, 1 damaged" in text
    assert "forgot pick" in said("forget", "pick", artifact.key)
    assert artifact.key[:12] not in said("ls")


def test_small_files_of_runs_are_seen_by_all(host: Host) -> None:
    a, b = host("a"), host("b")
    folder = a.root / "runs" / "one"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text("{}")
    (folder / "report.html").write_text("<p>")
    a.share(folder)
    b.refresh("runs/*/run.json")
    assert [path.name for path in (b.root / "runs" / "one").iterdir()] == ["run.json"]
    b.refresh("runs/one/*")
    assert (b.root / "runs" / "one" / "report.html").read_text() == "<p>"


def test_disk_too_full_for_a_copy_is_told_and_the_copy_comes_once_there_is_room(
    host: Host, small_share: Path, s3_store: str
) -> None:
    artifact = made(host("a"), files={**FILES, "large": bytes(600_000)})
    b = SharedStore(Bucket(s3_store), small_share / "cache")
    b.create()
    assert b.find("pick", artifact.key) == artifact
    (small_share / "filler").write_bytes(bytes(700_000))
    with pytest.raises(UserError, match=f"no space is left for {b.root}"):
        b.payload(artifact)
    assert b.find("pick", artifact.key) == artifact
    (small_share / "filler").unlink()
    assert read(b, artifact) == FILES


def test_two_processes_of_one_machine_fetch_once(host: Host, proxy: S3Proxy) -> None:
    artifact = made(host("a"))
    b = host("b")
    b.find("pick", artifact.key)
    proxy.seen.clear()
    with ThreadPoolExecutor(4) as pool, ExitStack():
        folders = list(pool.map(lambda _: b.payload(artifact), range(4)))
    assert len(set(folders)) == 1
    assert len([path for method, path in proxy.seen if path.endswith("weights")]) == 1
