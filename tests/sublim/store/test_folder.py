import errno
import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sublim.core.digest import digest, digest_directory
from sublim.core.errors import UserError
from sublim.files.locks import is_locked, locked
from sublim.store.folder import Store
from sublim.store.manifest import FORMAT, Artifact, Manifest, Provenance
from sublim.store.opening import open_store

PROVENANCE = Provenance(
    commit=None,
    dirty=None,
    packages={},
    python="3.11",
    host="here",
    device="CPU",
    started="2026-01-01T00:00:00+00:00",
    seconds=1.0,
)
FILES = {"rows.jsonl": b'{"n":1}\n', "deep/er/weights": bytes(range(256)) * 40, "empty": b""}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store").create()


def put(
    store: Store,
    stage: str = "pick",
    key: str = digest("a key"),
    files: dict[str, bytes] = FILES,
    *,
    private: bool = False,
    **inputs: Any,
) -> Artifact:
    """`private`: files are made for their owner alone, as safetensors makes them."""
    with store.draft(stage, key) as draft:
        for name, content in files.items():
            (draft / "payload" / name).parent.mkdir(parents=True, exist_ok=True)
            (draft / "payload" / name).write_bytes(content)
            if private:
                (draft / "payload" / name).chmod(0o600)
        return store.commit(
            draft,
            stage=stage,
            key=key,
            version=1,
            config={"of": 2},
            inputs={name: item.model_dump() for name, item in inputs.items()},
            notes={"resumed": 0},
            provenance=PROVENANCE,
        )


def test_committed_artifact_is_found_whole_under_its_key(store: Store) -> None:
    artifact = put(store)
    assert store.find("pick", artifact.key) == artifact
    assert artifact.content == digest_directory(store.payload(artifact))
    assert store.payload(artifact) == store.root / "pick" / artifact.key[:12] / "payload"
    assert (store.payload(artifact) / "deep/er/weights").read_bytes() == FILES["deep/er/weights"]
    manifest = store.manifest("pick", artifact.key)
    assert manifest is not None
    assert (manifest.config, manifest.notes, manifest.provenance) == ({"of": 2}, {"resumed": 0}, PROVENANCE)
    assert {name: entry.size for name, entry in manifest.files.items()} == {k: len(v) for k, v in FILES.items()}


def test_nothing_is_found_under_another_key_or_stage(store: Store) -> None:
    artifact = put(store)
    same_folder = artifact.key[:12] + digest("other")[12:]
    assert store.find("pick", same_folder) is None
    assert store.find("count", artifact.key) is None


def test_committing_leaves_no_draft_and_no_scratch(store: Store) -> None:
    key = digest("a key")
    (store.scratch("pick", key) / "part").write_text("half")
    put(store, key=key)
    assert list((store.root / "drafts").iterdir()) == []
    assert list((store.root / "scratch" / "pick").iterdir()) == []


def test_draft_that_fails_leaves_scratch_and_nothing_else(store: Store) -> None:
    key = digest("a key")

    def fail() -> None:
        with store.draft("pick", key) as draft:
            (draft / "payload" / "half").write_text("half")
            (store.scratch("pick", key) / "part").write_text("kept")
            raise ValueError("body failed")

    with pytest.raises(ValueError, match="body failed"):
        fail()
    assert list((store.root / "drafts").iterdir()) == []
    assert not (store.root / "pick").exists()
    assert (store.scratch("pick", key) / "part").read_text() == "kept"


def test_content_depends_on_files_only(store: Store) -> None:
    first = put(store)
    second = put(store, stage="other", key=digest("other"), numbers=first)
    assert first.content == second.content
    assert first.content != put(store, key=digest("third"), files={"rows.jsonl": b""}).content


def test_whoever_may_read_the_store_may_read_an_artifact(store: Store) -> None:
    artifact = put(store)
    folder = store.payload(artifact).parent
    assert stat.S_IMODE(folder.stat().st_mode) == stat.S_IMODE(store.root.stat().st_mode)


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_whoever_may_read_the_store_may_read_weights(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        artifact = put(store := Store(tmp_path / "store").create(), private=True)
    finally:
        os.umask(before)
    assert stat.S_IMODE((store.payload(artifact) / "deep/er/weights").stat().st_mode) == mode


def damage(store: Store, artifact: Artifact, how: str) -> None:
    payload = store.payload(artifact)
    weights = payload / "deep/er/weights"
    match how:
        case "deleted":
            weights.unlink()
        case "truncated":
            os.truncate(weights, 100)
        case "flipped":
            weights.write_bytes(b"\xff" + weights.read_bytes()[1:])
        case "swapped for a folder":
            weights.unlink()
            weights.mkdir()
        case "swapped for a link":
            weights.rename(store.root / "elsewhere")
            weights.symlink_to(store.root / "elsewhere")
        case "payload gone":
            payload.rename(store.root / "elsewhere")
        case _:
            (payload.parent / "manifest.json").unlink()


@pytest.mark.parametrize(
    "how",
    [
        "deleted",
        "truncated",
        "flipped",
        "swapped for a folder",
        "swapped for a link",
        "payload gone",
        "manifest gone",
    ],
)
def test_damaged_artifact_is_not_believed_and_is_replaced(store: Store, how: str) -> None:
    artifact = put(store)
    assert store.problem(artifact) is None
    damage(store, artifact, how)
    assert "pick/" in (store.problem(artifact) or "")
    assert store.find("pick", artifact.key) is None
    assert put(store) == artifact
    assert store.problem(artifact, deep=True) is None
    assert list((store.root / "drafts").iterdir()) == []


def test_empty_payload_that_is_gone_is_noticed(store: Store) -> None:
    artifact = put(store, files={})
    assert store.problem(artifact) is None
    store.payload(artifact).rmdir()
    assert store.problem(artifact)


def test_byte_flipped_behind_size_and_time_is_seen_only_by_deep_verification(store: Store) -> None:
    artifact = put(store)
    weights = store.payload(artifact) / "deep/er/weights"
    times = weights.stat().st_atime_ns, weights.stat().st_mtime_ns
    damage(store, artifact, "flipped")
    os.utime(weights, ns=times)
    assert store.problem(artifact) is None
    assert "weights has changed" in (store.problem(artifact, deep=True) or "")
    assert store.find("pick", artifact.key, deep=True) is None


def test_another_time_with_the_same_bytes_is_accepted(store: Store) -> None:
    artifact = put(store)
    os.utime(store.payload(artifact) / "rows.jsonl", (0, 0))
    assert store.problem(artifact) is None
    assert store.find("pick", artifact.key) == artifact


def test_record_of_other_content_is_refused(store: Store) -> None:
    artifact = put(store)
    recorded = artifact.model_copy(update={"content": digest("other bytes")})
    assert "other content" in (store.problem(recorded) or "")


def test_any_flipped_byte_of_a_manifest_is_harmless(store: Store) -> None:
    """Whatever byte is damaged, the payload that is believed is the one that was committed, and nothing crashes."""
    artifact = put(store)
    path = store.payload(artifact).parent / "manifest.json"
    whole = path.read_bytes()
    for place in range(0, len(whole), 5):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x80]) + whole[place + 1 :])
        assert store.manifest("pick", artifact.key) is None  # no longer UTF-8
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x02]) + whole[place + 1 :])
        try:
            found = store.find("pick", artifact.key)
        except UserError as error:  # the byte of the format
            assert "newer version" in str(error)  # noqa: PT017
            continue
        assert found in (None, artifact)


@pytest.mark.parametrize("text", ["", "null", "[]", '"x"', "{", '{"format": 1}', '{"format": "x"}'])
def test_damaged_manifest_is_as_good_as_absent(store: Store, text: str) -> None:
    artifact = put(store)
    (store.payload(artifact).parent / "manifest.json").write_text(text)
    assert store.manifest("pick", artifact.key) is None
    assert "missing" in (store.problem(artifact) or "")
    assert list(store.manifests()) == []
    assert list(store.unreadable()) == [store.payload(artifact).parent]


def test_artifact_of_a_newer_version_is_refused_not_overwritten(store: Store) -> None:
    artifact = put(store)
    path = store.payload(artifact).parent / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": FORMAT + 1, "invention": 1}))
    for look in (lambda: store.find("pick", artifact.key), lambda: list(store.manifests())):
        with pytest.raises(UserError, match="newer version of sublim: update sublim"):
            look()


def test_store_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "store.json").write_text(json.dumps({"format": FORMAT + 1}))
    with pytest.raises(UserError, match=f"has format {FORMAT + 1}.*update sublim"):
        open_store(str(tmp_path))


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": null}'])
def test_damaged_marker_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "store.json").write_text(text)
    with pytest.raises(UserError, match=r"store\.json is damaged"):
        open_store(str(tmp_path))


def test_store_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/store cannot be reached .*SUBLIM_STORE"):
        open_store(str(tmp_path / "file" / "store"))
    with pytest.raises(UserError, match="ftp:// is not supported"):
        open_store("ftp://host/results")


def test_store_is_where_the_setting_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SUBLIM_STORE", raising=False)
    assert open_store().root == tmp_path / "results"
    monkeypatch.setenv("SUBLIM_STORE", str(tmp_path / "there"))
    assert open_store().root == tmp_path / "there"
    assert open_store(str(tmp_path / "here")).root == tmp_path / "here"


def test_error_of_the_disk_is_never_taken_for_a_missing_file(store: Store) -> None:
    artifact = put(store)
    folder = store.payload(artifact).parent
    folder.rename(store.root / "moved")
    folder.symlink_to(folder.name)  # to itself: ELOOP, an error of the file system and no absence
    with pytest.raises(OSError, match="symbolic links") as caught:
        store.find("pick", artifact.key)
    assert caught.value.errno == errno.ELOOP


def test_lineage_leads_back_to_where_it_began(store: Store) -> None:
    base = put(store, "prepare_model", digest("base"), {"model": b"weights"})
    numbers = put(store, "generate", digest("numbers"), {"rows": b"1"}, base=base)
    other = put(store, "generate", digest("other"), {"rows": b"2"}, base=base)
    student = put(store, "train", digest("student"), {"adapter": b"3"}, data=numbers, base=base)
    described = [item.model_dump() for item in (numbers, other)]
    with store.draft("report", digest("report")) as draft:
        report = store.commit(
            draft,
            stage="report",
            key=digest("report"),
            version=1,
            config={},
            inputs={"several": described, "named": {"content": student.model_dump()}, "none": None},
            notes={},
            provenance=PROVENANCE,
        )
    names = {f"{item.stage}/{item.key[:12]}" for item in (base, numbers, other, student, report)}
    lineage = store.lineage(report)
    assert set(lineage) == names
    assert lineage[f"train/{student.key[:12]}"].inputs["data"]["content"] == numbers.content
    assert set(store.lineage(student)) == names - {
        f"report/{report.key[:12]}",
        f"generate/{other.key[:12]}",
    }
    store.forget(lineage[f"prepare_model/{base.key[:12]}"])
    assert f"prepare_model/{base.key[:12]}" not in store.lineage(student)


def test_every_manifest_is_listed_and_folders_of_the_store_itself_are_not(store: Store) -> None:
    first, second = put(store, "pick", digest(1)), put(store, "count", digest(2))
    (store.root / "runs" / "x").mkdir(parents=True)
    (store.root / "runs" / "x" / "manifest.json").write_text("{}")
    store.scratch("pick", digest(3))
    assert [manifest.artifact for manifest in store.manifests()] == [second, first]
    assert list(store.unreadable()) == []


def test_forgetting_removes_artifact_record_and_scratch(store: Store) -> None:
    artifact = put(store)
    manifest = store.manifest("pick", artifact.key)
    assert manifest is not None
    record = store.root / "records" / store.record_name("pick", 1, artifact.key)
    record.parent.mkdir()
    record.write_text("{}")
    (store.scratch("pick", artifact.key) / "part").write_text("")
    store.forget(manifest)
    assert not record.exists()
    assert store.find("pick", artifact.key) is None
    assert not store.payload(artifact).exists()
    assert list((store.root / "drafts").iterdir()) == []
    assert list((store.root / "scratch" / "pick").iterdir()) == []
    store.forget(manifest)  # twice is no error


def test_forgetting_waits_for_the_run_that_builds(store: Store) -> None:
    artifact = put(store)
    lock = store.lock_path(store.record_name("pick", 1, artifact.key))
    code = (
        "import sys\nfrom sublim.store.opening import open_store\n"
        "store = open_store(sys.argv[1])\nprint('ready', flush=True)\n"
        "[store.forget(manifest) for manifest in list(store.manifests())]"
    )
    with locked(lock):
        assert is_locked(lock)
        command = [sys.executable, "-c", code, str(store.root)]
        other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(0.5)
        assert store.find("pick", artifact.key) == artifact
    assert other.wait(10) == 0
    assert store.find("pick", artifact.key) is None


def test_link_in_a_payload_is_refused_and_nothing_is_committed(store: Store, tmp_path: Path) -> None:
    def link() -> None:
        with store.draft("pick", digest("key")) as draft:
            (draft / "payload" / "link").symlink_to(tmp_path)
            store.commit(
                draft,
                stage="pick",
                key=digest("key"),
                version=1,
                config={},
                inputs={},
                notes={},
                provenance=PROVENANCE,
            )

    with pytest.raises(TypeError, match="link"):
        link()
    assert store.find("pick", digest("key")) is None


def test_manifest_reads_back_as_written(store: Store) -> None:
    artifact = put(store)
    text = (store.payload(artifact).parent / "manifest.json").read_text()
    manifest = Manifest.model_validate_json(text)
    assert manifest == store.manifest("pick", artifact.key)
    assert json.loads(text)["format"] == FORMAT


def test_flipped_hash_in_a_manifest_is_noticed_without_hashing_a_file(store: Store) -> None:
    artifact = put(store)
    path = store.payload(artifact).parent / "manifest.json"
    fields = json.loads(path.read_text())
    fields["files"]["rows.jsonl"]["sha256"] = digest("other")
    path.write_text(json.dumps(fields))
    assert store.find("pick", artifact.key) is None


def test_share_that_is_not_mounted_is_not_taken_for_an_empty_store(small_share: Path) -> None:
    root = str(small_share / "lab" / "results")
    artifact = put(open_store(root))
    assert open_store(root).find("pick", artifact.key) == artifact
    subprocess.run(["umount", str(small_share)], check=True)
    with pytest.raises(UserError, match=r"is the share mounted.*sublim store create"):
        open_store(root)
    assert list(small_share.iterdir()) == []
    assert open_store(root, anew=True).find("pick", artifact.key) is None
    assert open_store(root).root == Path(root)


def test_store_that_was_removed_is_made_again(tmp_path: Path) -> None:
    open_store(str(tmp_path / "store"))
    shutil.rmtree(tmp_path / "store")
    assert (open_store(str(tmp_path / "store")).root / "store.json").exists()
