"""A reader that never stops looking, for tests that no half-written artifact is ever visible."""

import threading
import time
from pathlib import Path

from sublim.store.folder import Store
from sublim.store.layout import RESERVED
from sublim.store.manifest import Manifest


class Watcher(threading.Thread):
    """Looks at every artifact folder as soon as it appears and notes what is wrong with it."""

    def __init__(self, root: Path) -> None:
        super().__init__(daemon=True)
        self.store = Store(root)
        self.seen: set[str] = set()
        self.problems: list[str] = []
        self.looks = 0
        self._done = threading.Event()

    def run(self) -> None:
        while not self._done.is_set():
            self.look()
            time.sleep(0.001)

    def look(self) -> None:
        """One look at the store, as it is this very moment."""
        self.looks += 1
        for folder in self.store.root.glob("*/*"):
            name = folder.relative_to(self.store.root).as_posix()
            # A dot marks an empty draft that is moved here and back, to see whether a commit's rename will work.
            if folder.parent.name in RESERVED or folder.name.startswith(".") or name in self.seen:
                continue
            self.seen.add(name)
            try:
                manifest = Manifest.model_validate_json((folder / "manifest.json").read_text())
            except (OSError, ValueError) as error:
                self.problems.append(f"{name}: {error}")
                continue
            if problem := self.store.problem(manifest.artifact, deep=True):
                self.problems.append(problem)

    def __enter__(self) -> "Watcher":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self.join()
        self.look()
