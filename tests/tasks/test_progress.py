"""Progress of a stage on stderr: a bar on a terminal, nothing in a file."""

import io
import sys
import time
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


@pytest.fixture(autouse=True)
def nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no run to send progress of."""

    def unsent(*_: Any) -> None:
        """Not sent."""

    monkeypatch.setattr(progress_view._Artifacts, "send", unsent)  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setenv("TERM", "xterm")


def test_a_stage_that_tells_nothing_still_shows_that_it_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_view, "PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr(sys, "stderr", screen := Screen(True))
    with shown_progress("prepare_model") as listen:
        time.sleep(0.3)
        assert "prepare_model" in screen.getvalue()
        listen("copying", 1, 2)
    assert "prepare_model: copying" in screen.getvalue()


@pytest.mark.parametrize(("terminal", "patience", "shown"), [(True, 0, True), (False, 0, False), (True, 60, False)])
def test_a_bar_is_drawn_on_a_terminal_alone_and_not_for_what_is_soon_done(
    terminal: bool, patience: int, shown: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_view, "PATIENCE_SECONDS", patience)
    monkeypatch.setattr(sys, "stderr", screen := Screen(terminal))
    with shown_progress("train_student") as listen:
        listen("training", 1, 16)
        listen("training", 2, 16)
    assert ("train_student: training" in screen.getvalue()) == shown
    assert shown or not screen.getvalue()
