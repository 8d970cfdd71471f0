"""A store that another user made: reading takes a reader's rights, and what is lacking is one line that names it."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.runs.record import Run
from sublim.core.digest import digest
from sublim.store.folder import Store
from sublim.store.opening import open_store
from tests.sublim.store.test_folder import FILES, put

ROOT = Path(__file__).parents[2]
GROUP = 54320
FIRST, SECOND = 54321, 54322
BUILD = (
    "import os, sys\nos.umask(int(sys.argv[2], 8))\n"
    "from sublim.core.digest import digest\nfrom sublim.core.errors import UserError\n"
    "from sublim.store.opening import open_store\n"
    "from tests.sublim.store.test_folder import put\n"
    "store = open_store(sys.argv[1])\n"
    "try:\n"
    "    store.ready()\n"
    "    print('found' if store.find('pick', digest(1)) else 'not found')\n"
    "    for key in sys.argv[3:]:\n"
    "        store.scratch('pick', digest(int(key)))\n"
    "        put(store, key=digest(int(key)))\n"
    "except UserError as error:\n"
    "    print(error)\n"
)


@pytest.fixture
def lab() -> Iterator[Path]:
    """A folder that every user can reach."""
    folder = Path(tempfile.mkdtemp(prefix="sublim-lab-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def as_user(number: int, *words: str) -> "subprocess.CompletedProcess[str]":
    """Runs Python with these words as another user, which only root can."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HOME": "/nonexistent", "PYTHONDONTWRITEBYTECODE": "1"}
    del environment["XDG_CACHE_HOME"], environment["PREFECT_HOME"]
    become = ("setpriv", f"--reuid={number}", f"--regid={GROUP}", "--clear-groups") if os.geteuid() == 0 else ()
    done = subprocess.run(
        [*become, sys.executable, *words], capture_output=True, encoding="utf-8", env=environment, cwd=ROOT, check=False
    )
    if "No module named" in done.stderr:
        pytest.skip("other users cannot read this Python")
    return done


root_only = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("setpriv"), reason="only root can become other users"
)


@root_only
@pytest.mark.parametrize("umask", ["0022", "0077"])
def test_members_of_a_group_build_in_one_store_whatever_their_umask(lab: Path, umask: str) -> None:
    root = lab / "store"
    root.mkdir()
    os.chown(root, FIRST, GROUP)
    root.chmod(0o2775)
    assert as_user(FIRST, "-c", BUILD, str(root), umask, "1").stdout == "not found\n"
    done = as_user(SECOND, "-c", BUILD, str(root), umask, "1", "2")  # 1 again: it makes way
    assert (done.stdout, done.stderr) == ("found\n", "")
    assert as_user(FIRST, "-c", BUILD, str(root), umask, "2").stdout == "found\n"


@root_only
def test_store_of_one_user_alone_is_refused_to_another_with_its_owner(lab: Path) -> None:
    (lab / "store").mkdir()
    os.chown(lab / "store", FIRST, GROUP)
    as_user(FIRST, "-c", BUILD, str(lab / "store"), "0022", "1")
    line = as_user(SECOND, "-c", BUILD, str(lab / "store"), "0022", "2").stdout
    assert f"{lab}/store cannot be written (permission denied" in line
    assert f"ask its owner, user {FIRST}, for write permission" in line


@root_only
def test_stage_folder_of_another_is_told_before_its_stage_runs(lab: Path) -> None:
    root = lab / "store"
    root.mkdir()
    os.chown(root, FIRST, GROUP)
    root.chmod(0o2775)
    as_user(FIRST, "-c", BUILD, str(root), "0002", "1")
    (root / "pick").chmod(0o755)
    line = as_user(SECOND, "-c", BUILD, str(root), "0002", "2").stdout
    assert "Permission denied: you lack the permission" in line
    assert f"{root}/" in line


@pytest.fixture
def read_only(lab: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A store with an artifact and a run, which others may read and nobody may write."""
    monkeypatch.setenv("SUBLIM_STORE", str(lab / "store"))
    store = open_store()
    store.ready()
    put(store, key=digest(1))
    run = Run(store, "mnist", "quickstart", "owl")
    run.report = run.folder / "report.html"
    run.report.write_text("<p>", encoding="utf-8")
    run.save("Completed")
    for folder in [store.root, *(path for path in store.root.rglob("*") if path.is_dir())]:
        folder.chmod(0o555)
    yield store
    for folder in [store.root, *(path for path in store.root.rglob("*") if path.is_dir())]:
        folder.chmod(0o755)


def test_reader_lists_verifies_and_shows_and_a_run_is_refused_before_it_starts(read_only: Store) -> None:
    words = {
        ("store", "ls"): digest(1)[:12],
        ("store", "verify"): "1 artifacts hashed, 0 damaged",
        ("show", digest(1)[:8]): "pick (version 1)",
        ("runs",): "Completed",
        ("report", "last"): "report.html",
    }
    code = (
        "import sys\nfrom flows.__main__ import main\n"
        "for line in sys.argv[1:]:\n    assert main(line.split()) == 0, line\n"
        "from sublim.store.opening import open_store\n"
        "assert open_store().find('pick', sys.argv[3].split()[1]) is None\n"
        "sys.exit(main(['run', 'mnist', '--set', 'models=2']))\n"
    )
    done = as_user(FIRST, "-c", code, *(" ".join(each) for each in words))
    assert all(said in done.stdout for said in words.values()), done.stdout + done.stderr
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith(f"sublim: {read_only.root} cannot be written (permission denied")
    assert "set SUBLIM_STORE to a folder of your own" in line


@root_only
def test_payload_that_may_not_be_read_is_no_damage(read_only: Store) -> None:
    [artifact] = [manifest.artifact for manifest in read_only.manifests()]
    weights = read_only.payload(artifact) / "deep/er/weights"
    weights.chmod(0o600)
    code = (
        "import sys\nfrom sublim.core.errors import UserError\nfrom sublim.store.opening import open_store\n"
        "from flows.__main__ import main\n"
        "try:\n    open_store().find('pick', sys.argv[1])\nexcept UserError as error:\n    print(error)\n"
        "main(['store', 'verify'])\n"
    )
    done = as_user(FIRST, "-c", code, artifact.key)
    line = f"{weights} cannot be read (permission denied): ask its owner, root, for chmod g+r"
    assert done.stdout.splitlines() == [line, line, "1 artifacts hashed, 0 damaged, 1 not yours to read"]


@root_only
def test_artifact_whose_manifest_may_not_be_read_hides_no_other(read_only: Store) -> None:
    put(read_only, "other", digest(2), FILES)
    (read_only.directory("other", digest(2)) / "manifest.json").chmod(0o600)
    done = as_user(FIRST, "-m", "flows", "store", "verify")
    assert f"{read_only.directory('other', digest(2))} cannot be read (permission denied): ask its owner" in done.stdout
    assert "1 artifacts hashed, 0 damaged, 1 not yours to read" in done.stdout
