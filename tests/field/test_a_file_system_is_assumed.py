"""File systems and homes that lack something: it is said in one line before anything is computed, or done without."""

import errno
import fcntl
import os
import shutil
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.runs.record import file_name
from sublim.core.digest import digest
from sublim.core.errors import FAULTS, UserError, file_fault, file_faults_told, no_space
from sublim.files.locks import holder, is_locked, try_lock, unlock
from sublim.files.syncing import sync
from sublim.files.whole_files import write_whole
from sublim.models.local_digest import folder_digest
from sublim.store.folder import Store
from sublim.store.opening import open_store
from sublim.store.payloads import committed, digest_committed
from tasks.child import error_event
from tasks.processes import _restored  # pyright: ignore[reportPrivateUsage]
from tasks.records import VerifiedArtifact
from tests.sublim.store.test_folder import FILES, put

ANIMALS = [f"animal{number}" for number in range(45)]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store").create()


def told(work: Callable[[], object]) -> str:
    """The one line that `work` ends with."""
    with pytest.raises(UserError) as caught:
        work()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def refusing(number: int, only: Callable[[int], bool] = lambda descriptor: True, real: Callable[..., None] = os.fsync):
    """A system call on a descriptor, of a file system that answers with the error `number`."""

    def call(descriptor: int, *rest: int) -> None:
        if only(descriptor):
            raise OSError(number, os.strerror(number))
        real(descriptor, *rest)

    return call


def is_folder(descriptor: int) -> bool:
    return stat.S_ISDIR(os.fstat(descriptor).st_mode)


# Locks


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF])
def test_file_system_without_locks_is_named_before_a_run(
    store: Store, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(fcntl, "flock", refusing(number))
    line = told(store.ready)
    assert f"{store.root}/locks has no working locks ({os.strerror(number)})" in line
    assert list((store.root / "drafts").iterdir()) == list((store.root / "locks").iterdir()) == []
    (store.root / "asked.lock").touch()
    assert "no working locks" in told(lambda: is_locked(store.root / "asked.lock"))


def test_locks_that_two_can_hold_are_no_locks(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda descriptor, kind: None)  # as some FUSE file systems answer
    assert "has no working locks" in told(store.ready)


def test_note_in_a_lock_that_is_half_seen_is_no_error(tmp_path: Path) -> None:
    for note in (b"", b'{"host": "a', b"[]", b"\xff", b"3"):
        (tmp_path / "a.lock").write_bytes(note)
        assert holder(tmp_path / "a.lock") == "another run"


# Synchronising


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EBADF])
def test_store_needs_no_fsync_of_folders(store: Store, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(os, "fsync", refusing(number, is_folder, os.fsync))
    store.ready()
    artifact = put(store)
    assert store.find("pick", artifact.key, deep=True) == artifact


def test_file_that_does_not_reach_the_disk_is_an_error(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", refusing(errno.EIO))
    with pytest.raises(OSError, match="Input/output"):
        sync(store.root / "store.json")
    assert f"{store.root}: Input/output error" in told(store.ready)


def test_file_system_that_keeps_its_own_rights_takes_a_payload(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, mode: int) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(path))  # as NFS with ACLs answers

    chmod = Path.chmod
    monkeypatch.setattr(Path, "chmod", lambda path, mode: (chmod if mode == 0o600 else refuse)(path, mode))
    artifact = put(store, private=True)
    assert store.find("pick", artifact.key, deep=True) == artifact


def test_damaged_artifact_of_a_containers_image_makes_way(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = put(store)
    folder = store.payload(artifact).parent
    (folder / "payload/rows.jsonl").write_bytes(b"damaged")
    rename = Path.rename

    def refuse(path: Path, target: Path) -> Path:
        if path == folder:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(path))  # overlayfs, of a lower layer's folder
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    assert put(store) == artifact
    assert store.problem(artifact, deep=True) is None


# Another's files


FOREIGN = [".DS_Store", "._rows.jsonl", ".nfs0000000000a1b2c300000001", "Thumbs.db", "Desktop.ini", ".fuse_hidden0000"]
OTHERS = ["notes.txt", "deep/er/weights (copy)", "rows.jsonl~"]


@pytest.mark.parametrize("name", [*FOREIGN, "deep/.DS_Store", *OTHERS])
def test_file_beside_a_payloads_own_is_no_damage(store: Store, name: str) -> None:
    artifact = put(store)
    payload = store.payload(artifact)
    (payload / name).write_bytes(b"\0\0\0\1Bud1")
    assert store.find("pick", artifact.key, deep=True) == artifact
    manifest = store.manifest("pick", artifact.key)
    assert manifest is not None
    assert store.extras(manifest) == [f"pick/{artifact.key[:12]}/payload/{name}"]
    assert digest_committed(payload) == artifact.content
    assert committed(payload / "deep/er") == ["weights"]


def test_folder_or_link_beside_a_payloads_files_is_no_damage(store: Store, tmp_path: Path) -> None:
    artifact = put(store)
    (store.payload(artifact) / "@eaDir").mkdir(mode=0)
    (store.payload(artifact) / "tried").mkdir()
    (store.payload(artifact) / "tried" / "a").touch()
    (store.payload(artifact) / "latest").symlink_to(tmp_path / "nowhere")
    assert store.find("pick", artifact.key, deep=True) == artifact
    manifest = store.manifest("pick", artifact.key)
    assert manifest is not None
    assert [Path(path).name for path in store.extras(manifest)] == ["@eaDir", "latest", "tried"]


def test_what_a_file_manager_leaves_in_a_draft_is_no_part_of_the_payload(store: Store) -> None:
    looked_at = FILES | {name: b"x" for name in (*FOREIGN, "deep/.DS_Store", "@eaDir/thumb.jpg")}
    artifact = put(store, files=looked_at)
    assert artifact.content == put(store, "other").content
    for name in FOREIGN:
        (store.payload(artifact) / name).unlink()
    assert store.problem(artifact, deep=True) is None


def test_foreign_file_in_the_store_itself_is_no_damaged_artifact(store: Store) -> None:
    put(store)
    for place in (".DS_Store", "pick/.DS_Store", "notes/ideas/a"):
        (store.root / place).parent.mkdir(parents=True, exist_ok=True)
        (store.root / place).touch()
    assert list(store.unreadable()) == []


def test_hit_with_a_foreign_file_is_told_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    class Log:
        def warning(self, line: str, *values: object) -> None:
            said.append(line % values)

    monkeypatch.setattr("tasks.records.get_run_logger", Log)
    monkeypatch.setenv("SUBLIM_STORE", str(store.root))
    artifact = put(store)
    (store.payload(artifact) / ".DS_Store").touch()
    for _ in range(2):
        record = VerifiedArtifact().dumps(artifact)
        assert VerifiedArtifact().loads(record) == artifact
    assert len(said) == 1
    assert "payload/.DS_Store is none of our files" in said[0]


def test_manifest_that_a_power_cut_emptied_is_the_reason_to_build_again(store: Store) -> None:
    artifact = put(store)
    (store.payload(artifact).parent / "manifest.json").write_bytes(b"")
    assert store.problem(artifact) == f"pick/{artifact.key[:12]} is missing: its manifest.json is damaged"
    assert put(store) == artifact


@pytest.mark.parametrize("how", ["copied without times", "times of whole seconds", "reached by a link"])
def test_store_that_was_copied_or_linked_is_believed(store: Store, tmp_path: Path, how: str) -> None:
    artifact, elsewhere = put(store), tmp_path / "elsewhere"
    match how:
        case "copied without times":
            shutil.copytree(store.root, elsewhere, copy_function=shutil.copyfile)
        case "times of whole seconds":
            shutil.copytree(store.root, elsewhere)
            for path in elsewhere.rglob("*"):
                seconds = int(path.stat().st_mtime)
                os.utime(path, (seconds, seconds))
        case _:
            elsewhere.symlink_to(store.root)
    other = open_store(str(elsewhere))
    other.ready()
    assert other.find("pick", artifact.key) == artifact


# Homes


def broken_homes(tmp_path: Path) -> dict[str, str | None]:
    (tmp_path / "file").touch()
    return {"a file": str(tmp_path / "file"), "not there": "/proc/nonexistent", "relative": "cache", "none": None}


@pytest.mark.parametrize("how", ["a file", "not there", "relative", "none"])
def test_store_and_digests_need_no_cache_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_folder: Path, how: str
) -> None:
    home = broken_homes(tmp_path)[how]
    expected = folder_digest(tiny_folder)
    monkeypatch.chdir(tmp_path)
    if home is None:
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(Path, "home", lambda: _no_home())
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", home)
        monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    open_store(str(tmp_path / "store")).ready()
    assert folder_digest(tiny_folder) == expected
    assert not (tmp_path / "cache").exists()  # XDG: a relative path is none


def _no_home() -> Path:
    raise RuntimeError("Could not determine home directory.")


@pytest.fixture
def tiny_folder(tmp_path: Path) -> Path:
    """Files that look like a model's."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}", encoding="utf-8")
    (folder / "model.safetensors").write_bytes(bytes(64))
    return folder


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff\xfe", b"null"])
def test_damaged_memory_of_digests_is_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_folder: Path, text: bytes
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    expected = folder_digest(tiny_folder)
    for name in ("local-digests.json", "stores.json"):
        (tmp_path / "sublim" / name).write_bytes(text)
    assert folder_digest(tiny_folder) == expected
    open_store(str(tmp_path / "store"))


# Places


def test_place_that_can_be_no_store_is_told_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "unmounted")
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda number: {}[number])
    expected = {
        str(tmp_path / "file"): "it is a file",
        str(tmp_path / "dangling"): f"it is a link to {tmp_path}/unmounted, which is not there",
        "~/results": "has no home: give the whole path",
        f"/tmp/{'x' * 300}": "File name too long",
        f"/tmp/{'x/' * 3000}": "File name too long",
    }
    for place, words in expected.items():
        line = told(lambda place=place: open_store(place))
        assert words in line
        assert "SUBLIM_STORE" in line


def test_working_folder_that_is_gone_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(FileNotFoundError) as caught:
        open_store("results")
    assert "the working folder was removed" in (file_fault(caught.value) or "")
    open_store(str(tmp_path / "store")).ready()


def test_hosts_that_share_a_home_may_have_a_store_each_at_one_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("sublim.store.mounts._device", lambda root: hash(socket.gethostname()))
    for host in ("node-a", "node-b"):
        monkeypatch.setattr("socket.gethostname", lambda host=host: host)
        open_store(str(tmp_path / "scratch"))
        shutil.rmtree(tmp_path / "scratch")


def test_stage_folder_on_another_disk_is_told_before_its_stage_runs(small_share: Path, tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    (store.root / "pick").symlink_to(small_share)
    line = told(lambda: store.draft("pick", digest("key")).__enter__())
    assert "is on another disk: move or link the folder as a whole" in line


# Names


@pytest.mark.parametrize(
    "text", ["+".join(ANIMALS), "フクロウ" * 30, "é" * 33, "a/b", "../..", "a:b?", "two\nlines", "x" * 65]
)
def test_name_made_of_targets_is_one_that_every_file_system_takes(text: str, tmp_path: Path) -> None:
    name = file_name(text)
    assert len(name.encode()) <= 64
    assert name != file_name(text + "s")
    (tmp_path / name).mkdir()
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert not set(name) & set('\n<>:"|?*')  # SMB and exFAT take none


def test_short_name_stays_as_it_is_and_other_locales_get_letters_they_have(monkeypatch: pytest.MonkeyPatch) -> None:
    assert file_name("owl+wölfe") == "owl+wölfe"
    monkeypatch.setattr("sys.getfilesystemencoding", lambda: "iso-8859-1")
    assert file_name("owl") == "owl"
    assert file_name("wölfe").isascii()


# What a file system says in mid-run


@pytest.mark.parametrize("number", FAULTS)
def test_fault_of_a_file_system_is_one_line_with_its_path_and_what_to_do(number: int, tmp_path: Path) -> None:
    def fail(path: str | None) -> None:
        with file_faults_told(tmp_path):
            raise OSError(number, os.strerror(number), path)

    assert told(lambda: fail("/lab/rows")) == f"/lab/rows: {os.strerror(number)}: {FAULTS[number]}"
    assert told(lambda: fail(None)).startswith(f"{tmp_path}: ")


def test_fault_that_a_library_wraps_is_still_known_and_a_bug_is_not_taken_for_one(tmp_path: Path) -> None:
    assert "share fails" in (file_fault(RuntimeError("polars: Stale file handle (os error 116)"), tmp_path) or "")
    for error in (ValueError("a bug"), FileNotFoundError(errno.ENOENT, "no"), ConnectionRefusedError(111, "refused")):
        assert file_fault(error, tmp_path) is None

        def fail(error: Exception = error) -> None:
            with file_faults_told(tmp_path):
                raise error

        with pytest.raises(type(error)):
            fail()


def test_fault_in_a_stages_own_process_arrives_as_what_it_was(tmp_path: Path) -> None:
    event = error_event(OSError(errno.ESTALE, "Stale file handle", "/lab/rows"))
    assert "/lab/rows: Stale file handle" in (file_fault(_restored(event)) or "")


def test_file_system_that_says_it_has_no_bytes_is_not_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Nothing:
        total = used = free = 0

    monkeypatch.setattr("shutil.disk_usage", lambda root: Nothing)
    assert not no_space(ValueError("a bug"), tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda root: (root / "gone").stat())
    assert not no_space(ValueError("a bug"), tmp_path)


def test_small_file_that_cannot_be_written_leaves_no_draft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", refusing(errno.ENOSPC))
    with pytest.raises(OSError, match="No space"):
        write_whole(tmp_path / "run.json", "{}")
    assert list(tmp_path.iterdir()) == []


# A group's store


def test_group_that_shares_the_store_shares_what_one_members_umask_would_keep(tmp_path: Path) -> None:
    root = tmp_path / "store"
    root.mkdir()
    root.chmod(0o2775)
    before = os.umask(0o077)
    try:
        store = open_store(str(root))
        store.ready()
        artifact = put(store, private=True)
        descriptor = try_lock(store.lock_path("pick"))
        assert descriptor is not None
        unlock(descriptor)
    finally:
        os.umask(before)
    folder = store.payload(artifact).parent
    for path in (store.root / "records", folder.parent, folder, folder / "payload", folder / "payload" / "deep/er"):
        assert path.stat().st_mode & 0o2070 == 0o2070, path
    for path in (root / "store.json", store.lock_path("pick"), folder / "manifest.json", folder / "payload/rows.jsonl"):
        assert path.stat().st_mode & 0o060 == 0o060, path


def test_store_of_one_user_stays_private(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        store = open_store(str(tmp_path / "store"))
        store.ready()
        put(store)
    finally:
        os.umask(before)
    assert [path for path in store.root.rglob("*") if path.stat().st_mode & 0o077] == []
