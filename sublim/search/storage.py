"""The storage of a study: a journal file with heartbeats, or PostgreSQL; and a lock for workers that take trials.

Optuna's journal is made for files on shared network folders, where SQLite is unsafe. But it has no heartbeats, and its
own locks outlive a killed worker. The classes here add heartbeats, a lock that the kernel releases, and checks for
damage.
"""

import hashlib
import logging
import os
import socket
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import optuna
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
from sublim.search.config import Postgres, StudyConfig

log = logging.getLogger(__name__)
POLL_SECONDS = 0.02


class JournalLock(BaseJournalFileLock):
    """The lock of the journal, held by the kernel: if its holder is killed, it is released at once.

    Whoever takes it removes the line that a killed worker may have left half written.
    """

    def __init__(self, journal: Path) -> None:
        self.journal, self._descriptor = journal, -1

    def acquire(self) -> bool:
        """Waits for the lock; always True."""
        while (descriptor := try_lock(self.journal.with_suffix(".lock"))) is None:
            Event().wait(POLL_SECONDS)
        self._descriptor = descriptor
        drop_torn_line(self.journal)
        return True

    def release(self) -> None:
        """Gives the lock back."""
        unlock(self._descriptor)


HEAD = b'{"op_code"'
"""The beginning of every line of a journal."""


def check_journal(path: Path) -> None:
    """Raises UserError if the file is not a journal, before a line is added to it or its end is cut off."""
    if path.exists():
        with path.open("rb") as file:
            first = file.read(len(HEAD))
        if not HEAD.startswith(first):  # shorter if the very first line was written in part
            raise UserError(f"{path} holds no study: give another file in storage.path")


class CheckedJournal(JournalFileBackend):
    """Optuna's journal file, with errors that name the damaged line."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), lock_obj=JournalLock(path))
        self.path, self.line = path, 0

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any]]:
        """The records from a number on; UserError names the first line that is not JSON."""
        self.line = log_number_from
        try:
            for record in super().read_logs(log_number_from):
                self.line += 1
                yield record
        except ValueError as error:  # of json, and of UTF-8
            raise self.damaged(self.line + 1, "is no JSON") from error

    def damaged(self, line: int, why: str) -> UserError:
        """The error for a damaged line. No line is skipped, because nobody can know which trials it held."""
        return UserError(
            f"{self.path}:{line} {why}, so trials may be lost: restore the file from a backup, or give another file in "
            "storage.path"
        )


def check_place(path: Path) -> None:
    """Raises UserError if the file could not be created; creates nothing."""
    folder = next(parent for parent in path.parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"{path} cannot be created ({folder} is no folder with write access): change storage.path")


def drop_torn_line(journal: Path) -> None:
    """Removes a last line that a killed worker wrote in part, since the next line would be appended to it."""
    with journal.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        back = min(size, 1 << 20)
        file.seek(size - back)
        tail = file.read(back)
        if tail and not tail.endswith(b"\n"):
            file.truncate(size - back + tail.rfind(b"\n") + 1)


class BeatingJournal(JournalStorage, BaseHeartbeat):
    """Optuna's journal file with heartbeats: for each trial a file whose modification time is its last heartbeat.

    The present time is read in the same way, from a new file, so that only the clock of the file system counts.
    """

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
        """Records that the trial's worker is alive."""
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
        """Seconds between two heartbeats."""
        return self.heartbeat

    def get_heartbeat_stale_trial_callback(self) -> Callable[[Study, FrozenTrial], None] | None:
        """None: `Search` itself takes up the trials of dead workers."""
        return None


Storage = BeatingJournal | RDBStorage


def open_storage(config: StudyConfig) -> Storage:
    """Opens the storage of the study, and creates it if it does not exist. Raises UserError if that fails."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if isinstance(config.storage, Postgres):
        return open_postgres(config.storage.url, config)
    path = config.storage.path
    assert path is not None
    try:
        return BeatingJournal(path.expanduser().absolute(), config.heartbeat, config.grace)
    except OSError as error:
        raise UserError(f"{path} cannot be used ({error.strerror}): change storage.path") from error


def open_postgres(url: str, config: StudyConfig) -> RDBStorage:
    """Opens Optuna's tables in a PostgreSQL database. A lock lets one worker create them; two at once would fail."""
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
        raise UserError(
            f"{given} cannot be reached: start the server or change storage.url ({reason[:200]})"
        ) from error
    return storage


@contextmanager
def asking(storage: Storage, study: str) -> Generator[None]:
    """Lets one worker at a time take trials, without Optuna's warnings.

    It then sees every trial that others have taken, including one that a worker was taking when it died.
    """
    if isinstance(storage, BeatingJournal):
        lock = locked(storage.path.with_suffix(f".{_number(study):016x}.asking"), poll=POLL_SECONDS)
    else:
        lock = advisory_lock(storage.engine, study)
    with lock, quiet():
        yield


@contextmanager
def advisory_lock(engine: sqlalchemy.Engine, name: str) -> Generator[None]:
    """An advisory lock of the database, which is released with its holder's connection at the latest."""
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
    """Silences Optuna's warnings that heartbeats are experimental and meant for `optimize`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        warnings.filterwarnings("ignore", message="Heartbeat of storage is supposed")
        yield


@contextmanager
def beating(storage: Storage, trial_id: int, seconds: int) -> Generator[None]:
    """Records heartbeats for a trial while the block runs."""
    stop = Event()

    def beat() -> None:
        while not stop.wait(seconds):
            try:
                storage.record_heartbeat(trial_id)
            except (OSError, SQLAlchemyError, StorageInternalError) as error:
                # If this thread ended, another worker would take over a trial that is alive.
                log.warning("a heartbeat could not be recorded, the next follows in %d s: %s", seconds, error)

    thread = Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
