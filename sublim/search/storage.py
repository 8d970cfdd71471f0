"""Where a study lies: a journal file with heartbeats of its own, or PostgreSQL; and one lock for whoever asks."""

import hashlib
import logging
import os
import socket
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any, assert_never

import sqlalchemy
from optuna import Study
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages._heartbeat import BaseHeartbeat  # pyright: ignore[reportPrivateUsage]
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import BaseJournalFileLock  # pyright: ignore[reportPrivateUsage]
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from sublim.core.errors import UserError
from sublim.files.locks import locked, try_lock, unlock
from sublim.search.config import Journal, Postgres, StudyConfig

log = logging.getLogger(__name__)
POLL_SECONDS = 0.02


class JournalLock(BaseJournalFileLock):
    """The journal's lock, held by the kernel: a killed worker's is gone at once, and its half-written line too."""

    def __init__(self, journal: Path) -> None:
        self.journal, self._descriptor = journal, -1

    def acquire(self) -> bool:
        while (descriptor := try_lock(self.journal.with_suffix(".lock"))) is None:
            Event().wait(POLL_SECONDS)
        self._descriptor = descriptor
        drop_torn_line(self.journal)
        return True

    def release(self) -> None:
        unlock(self._descriptor)


HEAD = b'{"op_code"'
"""How each line of a journal begins."""


def check_journal(path: Path) -> None:
    """Raises UserError for a file of another kind, before a line is added to it or its end is cut off."""
    if path.exists():
        with path.open("rb") as file:
            first = file.read(len(HEAD))
        if not HEAD.startswith(first):  # shorter where the very first line was torn
            raise UserError(f"{path} holds no study: give another file in storage.path")


class CheckedJournal(JournalFileBackend):
    """Optuna's journal file, which knows the last line it gave and says which one is no record."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), lock_obj=JournalLock(path))
        self.path, self.line = path, 0

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any]]:
        self.line = log_number_from
        try:
            for record in super().read_logs(log_number_from):
                self.line += 1
                yield record
        except ValueError as error:  # of json, and of UTF-8
            raise self.damaged(self.line + 1, "is no JSON") from error

    def damaged(self, line: int, why: str) -> UserError:
        """What to say of a line; what was lost with it cannot be known, so that nothing is skipped."""
        return UserError(
            f"{self.path}:{line} {why}, so that trials may be lost: put a copy from before in its place, or give "
            "another file in storage.path"
        )


def check_place(path: Path) -> None:
    """Raises UserError where no file could be made, without making one."""
    folder = next(parent for parent in path.parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"{path} cannot be made ({folder} is no folder that we may write to): mend storage.path")


def drop_torn_line(journal: Path) -> None:
    """Cuts what a writer left of its last line when it was killed; otherwise the next one would be glued to it."""
    with journal.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        back = min(size, 1 << 20)
        file.seek(size - back)
        tail = file.read(back)
        if tail and not tail.endswith(b"\n"):
            file.truncate(size - back + tail.rfind(b"\n") + 1)


class BeatingJournal(JournalStorage, BaseHeartbeat):
    """Optuna's journal file with heartbeats: the time of a file for each trial, told by the folder's own clock."""

    def __init__(self, path: Path, heartbeat: int, grace: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        check_journal(path)
        journal = CheckedJournal(path)
        try:
            super().__init__(journal)
        except (KeyError, TypeError, ValueError, AttributeError, AssertionError) as error:  # as Optuna's replay fails
            raise journal.damaged(journal.line, "is no record of this version of Optuna") from error
        self.path, self.heartbeat, self.grace = path, heartbeat, grace
        self.beats = path.with_suffix(".beats")
        self.beats.mkdir(exist_ok=True)

    def record_heartbeat(self, trial_id: int) -> None:
        (self.beats / str(trial_id)).touch()

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        clock = self.beats / f"clock-{socket.gethostname()}-{os.getpid()}"
        clock.touch()
        oldest = clock.stat().st_mtime - self.grace
        clock.unlink()
        running = self.get_all_trials(study_id, deepcopy=False, states=(TrialState.RUNNING,))
        beats = {trial._trial_id: self.beats / str(trial._trial_id) for trial in running}  # pyright: ignore[reportPrivateUsage]
        return [trial for trial, beat in beats.items() if beat.exists() and beat.stat().st_mtime < oldest]

    def get_heartbeat_interval(self) -> int:
        return self.heartbeat

    def get_heartbeat_stale_trial_callback(self) -> Callable[[Study, FrozenTrial], None] | None:
        return None


Storage = BeatingJournal | RDBStorage


def open_storage(config: StudyConfig) -> Storage:
    """The study's storage, made where it is not there yet."""
    match config.storage:
        case Journal(path=path):
            assert path is not None
            try:
                return BeatingJournal(path.expanduser().absolute(), config.heartbeat, config.grace)
            except OSError as error:
                raise UserError(f"{path} cannot be used ({error.strerror}): mend storage.path") from error
        case Postgres(url=url):
            return open_postgres(url, config)
        case _:
            assert_never(config.storage)


def open_postgres(url: str, config: StudyConfig) -> RDBStorage:
    """Optuna's tables in a PostgreSQL database. One worker makes them: `create_all` of two at once fails."""
    options: dict[str, Any] = {"pool_pre_ping": True}
    try:
        engine = sqlalchemy.create_engine(url, **options)
        with advisory_lock(engine, "optuna-tables"), quiet():
            storage = RDBStorage(url, options, heartbeat_interval=config.heartbeat, grace_period=config.grace)
        engine.dispose()
    except ImportError as error:
        raise UserError(f"PostgreSQL needs psycopg ({error}): pip install psycopg psycopg-binary") from error
    except (OperationalError, StorageInternalError) as error:
        reason = " ".join(str(error.__cause__ or error).split())
        given = url.replace("+psycopg", "", 1)
        raise UserError(f"{given} cannot be reached: start the server or mend storage.url ({reason[:200]})") from error
    return storage


@contextmanager
def asking(storage: Storage, study: str) -> Generator[None]:
    """One worker at a time takes trials: it sees all that others took, and what a dead one left half taken."""
    if isinstance(storage, BeatingJournal):
        with locked(storage.path.with_suffix(f".{_number(study):016x}.asking"), poll=POLL_SECONDS):
            yield
    else:
        with advisory_lock(storage.engine, study):
            yield


@contextmanager
def advisory_lock(engine: sqlalchemy.Engine, name: str) -> Generator[None]:
    """A lock of the database's, gone with the connection of whoever holds it."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sqlalchemy.text("SELECT pg_advisory_lock(:number)"), {"number": _number(name)})
        try:
            yield
        finally:
            connection.execute(sqlalchemy.text("SELECT pg_advisory_unlock(:number)"), {"number": _number(name)})


def _number(name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"sublim {name}".encode()).digest()[:8]) >> 1


@contextmanager
def quiet() -> Generator[None]:
    """Without Optuna's remarks that heartbeats are experimental and meant for `optimize`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        warnings.filterwarnings("ignore", message="Heartbeat of storage is supposed")
        yield


@contextmanager
def beating(storage: Storage, trial_id: int, seconds: int) -> Generator[None]:
    """Signs of life for a trial, for the length of the block."""
    stop = Event()

    def beat() -> None:
        while not stop.wait(seconds):
            try:
                storage.record_heartbeat(trial_id)
            except (OSError, SQLAlchemyError, StorageInternalError) as error:
                # A thread that ended here would have the living trial taken over.
                log.warning("no sign of life could be left, the next is tried in %d s: %s", seconds, error)

    thread = Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
