"""The local Prefect server: one for a home and host, ended only where it is still the same process."""

import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from flows.__main__ import main
from flows.infra import server, server_note
from flows.infra.prefect_api import responds
from flows.infra.server_note import Server, here
from sublim.core.errors import UserError
from sublim.core.owner import Owner, same_process

OLD_LAYOUT = '{"url": "http://127.0.0.1:1", "pid": %d}'


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home of this test's own, whose name holds signs that mean something in an address; no server is left in it."""
    folder = tmp_path / "what? 50% #1"
    monkeypatch.setenv("SUBLIM_HOME", str(folder))
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.chdir(tmp_path)
    yield folder
    server.stop()


@pytest.fixture
def sleeping() -> Iterator["subprocess.Popen[bytes]"]:
    """A process that has nothing to do with Prefect."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
        yield process
        process.kill()


def noted(home: Path, text: str) -> None:
    home.mkdir(parents=True, exist_ok=True)
    (home / "server.json").write_text(text)


def started_in(home: Path) -> list[int]:
    """Servers of this home that run, by what they were started with."""
    found: list[int] = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("PREFECT_HOME") == str(home / "prefect") and process.cmdline():
                found.append(process.pid)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def of_another_host(**changes: object) -> Server:
    mine = here("http://127.0.0.1:1", os.getpid(), psutil.Process().create_time())
    return mine.model_copy(update={"host": "node-b", "boot": "another", **changes})


def test_starts_at_once_give_one_server_whatever_is_noted_and_stop_ends_it(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setenv("PREFECT_PROFILE", "ghost")
    with socket.create_server(("127.0.0.1", 0)) as taken, ThreadPoolExecutor(2) as both:
        # Another program takes the port after it was found free.
        ports = iter([taken.getsockname()[1]])
        free_port = server._free_port  # pyright: ignore[reportPrivateUsage]
        monkeypatch.setattr(server, "_free_port", lambda wanted: next(ports, None) or free_port(wanted))
        first, second = both.map(lambda _: server.start(), range(2))
    assert first == second
    assert started_in(home) == [first.pid]
    assert responds(first.api)
    assert [path.relative_to(home).as_posix() for path in home.parent.rglob("*.db")] == ["prefect/prefect.db"]
    assert not responds(first.url)  # the UI's own pages are not the API
    for text in ("", '{"url": "http://127', OLD_LAYOUT % first.pid, OLD_LAYOUT % os.getpid()):
        noted(home, text)
        assert server.running() == first
    (home / "server.json").unlink()
    assert server.start() == first
    assert server_note.read(home) == first
    assert server_note.is_held(home)
    assert server.stop() == first
    assert started_in(home) == []
    assert not server_note.is_held(home)
    assert server.stop() is None


def test_start_that_fails_leaves_no_process_and_says_what_the_log_says(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_SERVER_DATABASE_CONNECTION_URL", "sqlite+aiosqlite:////nonexistent/folder/prefect.db")
    with pytest.raises(UserError, match=re.escape(str(home / "server.log"))) as caught:
        server.start()
    assert "unable to open database file" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert started_in(home) == []
    assert not (home / "server.json").exists()


@pytest.mark.parametrize("kept", ["the number alone", "another start", "another host", "another boot"])
def test_a_process_that_is_not_the_server_is_never_signalled(
    kept: str, home: Path, sleeping: "subprocess.Popen[bytes]"
) -> None:
    mine = here("http://127.0.0.1:1", sleeping.pid, psutil.Process(sleeping.pid).create_time())
    notes = {
        "the number alone": OLD_LAYOUT % sleeping.pid,
        "another start": mine.model_copy(update={"started": mine.started - 60}).model_dump_json(),
        "another host": mine.model_copy(update={"host": "node-b", "boot": "b"}).model_dump_json(),
        "another boot": mine.model_copy(update={"boot": "earlier"}).model_dump_json(),
    }
    noted(home, notes[kept])
    assert server.stop() is None
    assert server.running() is None
    assert sleeping.poll() is None


def test_a_home_that_another_host_uses_gives_this_one_a_part_of_its_own(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert server.folder() == home
    noted(home, of_another_host().model_dump_json())
    assert server.folder() == home / "hosts" / socket.gethostname()
    assert main(["server", "status"]) == 0
    assert f"that of node-b (process {os.getpid()})" in capsys.readouterr().out


def test_a_container_that_is_gone_leaves_the_home_to_the_next(home: Path) -> None:
    mine = here("http://127.0.0.1:1", 1, 0.0)
    other = mine.model_copy(update={"spaces": ["pid:[1]", "net:[1]"]})
    rebooted = mine.model_copy(update={"boot": "earlier"})
    for note in (other, other.model_copy(update={"host": "a1b2c3"}), rebooted):
        noted(home, note.model_dump_json())
        assert server.folder() == home
        lock = server_note.hold(home)  # as the server that runs there does
        assert lock is not None
        assert server.folder() != home
        os.close(lock)
    noted(home, other.model_dump_json())
    noted(home / "hosts" / socket.gethostname(), other.model_dump_json())
    locks = [server_note.hold(home), server_note.hold(home / "hosts" / socket.gethostname())]
    with pytest.raises(UserError, match="set SUBLIM_HOME to a folder of this container's own"):
        server.folder()
    for lock in locks:
        os.close(lock or 0)


def test_a_server_that_cannot_be_seen_is_not_given_a_second_one_beside_it(home: Path) -> None:
    home.mkdir()
    lock = server_note.hold(home)
    with pytest.raises(UserError, match="cannot be seen from here"):
        server.start()
    os.close(lock or 0)
    assert started_in(home) == []


def test_a_home_that_is_no_folder_is_one_line_and_not_needed_where_a_server_is_chosen(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home.parent.mkdir(exist_ok=True)
    home.write_text("a file", encoding="utf-8")
    assert main(["server", "start"]) == 2
    assert "set SUBLIM_HOME" in capsys.readouterr().err
    assert main(["server", "status"]) == 0
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    with pytest.raises(UserError, match="nothing listens there"):
        server.ensure()


def test_a_server_that_ends_while_it_is_waited_for_is_none(
    home: Path, sleeping: "subprocess.Popen[bytes]", monkeypatch: pytest.MonkeyPatch
) -> None:
    stopping = here("http://127.0.0.1:1", sleeping.pid, psutil.Process(sleeping.pid).create_time())
    noted(home, stopping.model_dump_json())
    threading.Timer(0.2, sleeping.kill).start()
    assert server.running() is None


def test_a_server_that_listens_and_does_not_answer_is_told_in_time(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "ANSWER_SECONDS", 0.5)
    monkeypatch.setattr(server, "END_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as hung:
        url = f"http://127.0.0.1:{hung.getsockname()[1]}"
        noted(home, here(url, os.getpid(), psutil.Process().create_time()).model_dump_json())
        with pytest.raises(UserError, match=r"does not answer at .* `sublim server stop` ends it"):
            server.running()
    (home / "server.json").unlink()


def test_a_user_without_a_home_is_told_what_to_set(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUBLIM_HOME", "~nobody-of-this-name/sublim")
    with pytest.raises(UserError, match="set SUBLIM_HOME and PREFECT_HOME"):
        server.running()
    monkeypatch.setenv("SUBLIM_HOME", str(home))


def test_a_clock_that_was_set_makes_no_process_a_dead_one(monkeypatch: pytest.MonkeyPatch) -> None:
    owner, boot_time = Owner.this(), psutil.boot_time()
    monkeypatch.setattr("psutil.boot_time", lambda: boot_time + 60)
    monkeypatch.setattr("psutil._pslinux.boot_time", lambda: boot_time + 60)
    assert psutil.Process().create_time() > boot_time + 60
    assert not owner.is_dead()


def test_a_process_number_given_again_is_not_the_same_process(sleeping: "subprocess.Popen[bytes]") -> None:
    owner = Owner.this()
    assert not owner.is_dead()
    assert owner._replace(started=owner.started - 60).is_dead()
    assert not owner._replace(machine="another", started=0.0).is_dead()  # that cannot be known
    assert same_process(sleeping.pid, psutil.Process(sleeping.pid).create_time()) is not None
    started = psutil.Process(sleeping.pid).create_time()
    sleeping.kill()
    sleeping.wait()
    assert same_process(sleeping.pid, started) is None
