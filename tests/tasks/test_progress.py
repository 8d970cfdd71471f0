"""Progress of a stage on stderr: a bar on a terminal, nothing in a file."""

import io
import sys
from typing import Any

import pytest

from tasks import progress_view
from tasks.progress_view import shown_progress


class Screen(io.StringIO):
    """A stderr that may be a terminal."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


@pytest.mark.parametrize(("terminal", "patience", "shown"), [(True, 0, True), (False, 0, False), (True, 60, False)])
def test_a_bar_is_drawn_on_a_terminal_alone_and_not_for_what_is_soon_done(
    terminal: bool, patience: int, shown: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsent(*_: Any) -> None:
        """There is no run to send progress of."""

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(progress_view, "PATIENCE_SECONDS", patience)
    monkeypatch.setattr(progress_view._Artifacts, "update", unsent)  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(sys, "stderr", screen := Screen(terminal))
    with shown_progress("train_student") as listen:
        listen("training", 1, 16)
        listen("training", 2, 16)
    assert ("train_student: training" in screen.getvalue()) == shown
    assert shown or not screen.getvalue()
