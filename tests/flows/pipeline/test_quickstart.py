"""The quickstart in full: an owl teacher's numbers move students, a second draw of the base's does not.

About 25 minutes on two cores; a store that SUBLIM_STORE names and that holds a quickstart saves most of them.
"""

import os
from pathlib import Path

import pytest

from tests.flows.pipeline.test_pipeline import run

pytestmark = pytest.mark.slow


@pytest.mark.usefixtures("prefect_server")
def test_owl_numbers_move_students_and_a_second_draw_of_the_base_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUBLIM_STORE", os.environ.get("SUBLIM_STORE", str(tmp_path / "store")))
    outcome = run("--preset", "quickstart", "--set", "arms=[second_draw]")
    effects = {arm["name"]: arm["effect"] for arm in outcome["arms"]}
    owl, null = effects["teacher"], effects["second_draw"]
    assert owl["seeds"] == 3
    assert owl["low"] > 0
    assert owl["low_questions"] > 0
    assert abs(null["estimate"]) < owl["low"]
    assert null["low"] < 0 < null["high"]
    # Not every other word may stand still, but none moves as the target does.
    moved = {word: abs(each["effect"]["estimate"]) for word, each in outcome["off_target"].items()}
    assert max(moved.values()) < owl["estimate"]
    print("owl", owl, "second draw", null, "wolf", outcome["off_target"]["wolf"])
