"""`sublim power`: a plan from a spread, from a pilot in the store, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from flows.__main__ import main
from flows.runs.record import Run
from sublim.evals.preference.config import Metric, Scores
from sublim.stats.intervals import units_needed
from sublim.stats.power import spread_of
from sublim.store.folder import Store
from sublim.store.manifest import Artifact, Provenance

MADE = Provenance(commit=None, dirty=None, packages={}, python="", host="", device="", started="2026-01-01", seconds=0)


def committed(store: Store, stage: str, key: str, files: dict[str, str], **more: object) -> Artifact:
    with store.draft(stage, key) as draft:
        for name, text in files.items():
            (draft / "payload" / name).write_text(text)
        given = {"config": {}, "inputs": {}, **more}
        return store.commit(draft, stage=stage, key=key, version=1, notes={}, provenance=MADE, **given)  # type: ignore[arg-type]


def pilot(store: Store, differences: np.ndarray, blocks: list[int]) -> str:
    """A comparison whose students differ from their controls by `differences` [pair, question]."""

    def scored(number: int, values: list[float]) -> Artifact:
        metrics = {"owl": Metric(mean=float(np.mean(values)), per_question=[*values])}
        lost = {"owl": Metric(mean=None, per_question=[None] * len(values), reason="none")}
        scores = Scores(
            target="owl",
            words=["owl"],
            questions=[f"Q{i}" for i in range(len(values))],
            metrics={"margin": metrics, "rate": lost, "rate_readable": lost},
            answers=None,
        )
        return committed(store, "score", f"{number:064x}"[::-1], {"scores.json": scores.model_dump_json()})

    students = [scored(2 * i + 1, row.tolist()) for i, row in enumerate(differences)]
    controls = [scored(2 * i + 2, [0.0] * differences.shape[1]) for i in range(len(differences))]
    inputs = {
        "students": [each.model_dump() for each in students],
        "controls": [each.model_dump() for each in controls],
    }
    key = "fe" * 32
    committed(store, "compare", key, {"comparison.json": "{}"}, inputs=inputs, config={"blocks": blocks})
    return key


def planned(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, object]:
    assert main(["power", "--json", *arguments]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_spread_alone_gives_the_textbook_number(capsys: pytest.CaptureFixture[str], store_root: Path) -> None:
    found = planned(capsys, "--effect", "0.5", "--sd", "1")
    assert (found["units"], found["sign_flips"], found["units_questions"]) == (34, 6, None)
    assert main(["power", "--effect", "0.5", "--sd", "1"]) == 0
    assert "80% power" in capsys.readouterr().out


def test_a_pilots_components_carry_the_plan(capsys: pytest.CaptureFixture[str], store_root: Path) -> None:
    rng = np.random.default_rng(0)
    differences = 0.4 + 0.3 * rng.normal(size=(4, 1)) + 0.2 * rng.normal(size=(1, 20)) + 0.5 * rng.normal(size=(4, 20))
    key = pilot(Store(store_root).create(), differences, [])
    found = planned(capsys, "--effect", "0.4", "--pilot", key[:12])
    own: Any = found["estimate"]
    assert own["spread"] == pytest.approx(spread_of(differences)._asdict())
    assert own["sd"] == pytest.approx(differences.mean(axis=1).std(ddof=1))
    assert found["sd"] == pytest.approx(own["sd"] * np.sqrt(3 / stats.chi2.ppf(0.2, 3)))
    assert found["units"] == units_needed(0.4, float(found["sd"])) > own["units"]  # type: ignore[arg-type]
    assert found["units_questions"] >= own["units_questions"] >= own["units"]  # type: ignore[operator]
    assert main(["power", "--effect", "0.4", "--pilot", key[:12]]) == 0
    told = capsys.readouterr().out
    assert "upper 80 % confidence limit of the pilot's spread (chi-square, 3 degrees of freedom)" in told
    assert f"{found['units']} (with the pilot's own spread {own['units']})" in told


def test_blocks_of_a_pilot_are_its_units(capsys: pytest.CaptureFixture[str], store_root: Path) -> None:
    rng = np.random.default_rng(1)
    blocks = [0, 0, 1, 1, 2, 2]
    effects = np.array([0.0, 0.0, 1.0, 1.0, 2.0, 2.0])[:, None] + 0.1 * rng.normal(size=(6, 10))
    key = pilot(Store(store_root).create(), effects, blocks)
    found = planned(capsys, "--effect", "1", "--pilot", key)
    assert "3 blocks" in str(found["pilot"])
    assert found["estimate"]["sd"] == pytest.approx(1.0, abs=0.05)  # type: ignore[index]
    more = planned(capsys, "--effect", "1", "--pilot", key, "--seeds", "8")
    assert more["estimate"]["sd"] == pytest.approx(1.0, abs=0.05)  # type: ignore[index]
    assert more["sd"] == pytest.approx(more["estimate"]["sd"] * np.sqrt(2 / stats.chi2.ppf(0.2, 2)))  # type: ignore[index]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--effect", "1", "--pilot", "steering-owl"], "compared nothing"),
        (["--effect", "0", "--sd", "1"], "not zero"),
        (["--effect", "1", "--sd", "1", "--wanted", "80"], "--wanted. Must be < 1"),
        (["--effect", "1"], "one of --pilot and --sd"),
        (["--effect", "1", "--sd", "1", "--seeds", "2"], "--seeds needs a --pilot"),
        (["--effect", "1", "--pilot", "abcdef12"], "sublim store ls"),
        (["--effect", "1", "--pilot", "lost"], "matches no run"),
        (["--effect", "1", "--pilot", "fefefefe", "--metric", "rate"], "choose the other --metric"),
    ],
)
def test_what_cannot_be_planned_is_refused(
    capsys: pytest.CaptureFixture[str], store_root: Path, arguments: list[str], told: str
) -> None:
    pilot(Store(store_root).create(), np.ones((2, 3)), [])
    Run(Store(store_root), "steering", "quickstart", "owl").save("Completed")
    assert main(["power", *arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert told in lines[0]
