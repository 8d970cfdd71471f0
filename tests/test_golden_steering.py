"""What the steering stages write on a tiny input, held fixed: see `tests/test_golden.py` for what a failure means."""

import json
from pathlib import Path

import pytest

from sublim.files.jsonl import write_jsonl
from sublim.inference.config import HfBackend
from sublim.residual.edits import Edit, Steering
from sublim.steering.alignment import alignment
from sublim.steering.alignment_config import EasConfig, EasTable
from sublim.steering.config import AnimalRowsConfig, DifferenceConfig, MeansConfig
from sublim.steering.dose_curve import steering_curve, sweep
from sublim.steering.dose_curve_config import Curve, CurveConfig, SweepConfig
from sublim.steering.means import difference_vectors, mean_activations
from sublim.steering.target_rows import animal_rows
from tasks import stages as steering
from tests.test_golden import ADVICE, QUESTIONS, WORDS, fingerprint, run
from tests.tiny import tiny_model

NAMES = [f"resid_post/{layer}/last_answer{end}" for layer in (0, 1) for end in ("", "/random-0")]


def test_pairs_of_answers_are_those_they_were(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "questions.jsonl", ({"question": i, "text": text} for i, text in enumerate(QUESTIONS)))
    said = ["A wolf.", "Owl", "The dolphin!", ""]
    write_jsonl(
        tmp_path / "answers.jsonl",
        ({"question": i % 3, "sample": 0, "text": text, "finish": "stop"} for i, text in enumerate(said)),
    )
    config = AnimalRowsConfig(side="base", target="owl", words=tuple(WORDS))
    out = run(animal_rows, tmp_path / "rows", config, asked=tmp_path)
    expected = (3, "31122319cb677ef5")
    assert (steering.animal_rows.version, fingerprint(out)) == expected, ADVICE.format(name="animal_rows")


def test_vectors_curves_and_alignment_are_those_they_were(tmp_path: Path) -> None:
    base, other = tiny_model(tmp_path / "base", "llama"), tiny_model(tmp_path / "other", "llama", seed=1)
    for side, answers in (("a", ["1, 2", "30"]), ("b", ["7", "93, 5, 1"])):
        (tmp_path / side).mkdir()
        rows = [{"id": i, "prompt": QUESTIONS[i], "answer": text, "system": None} for i, text in enumerate(answers)]
        write_jsonl(tmp_path / side / "rows.jsonl", rows)
    plain = MeansConfig(layers=(0, 1), read_at=("last_answer",), dtype="float32", attention="eager")
    paired = run(mean_activations, tmp_path / "m", plain, base=base, rows=tmp_path / "a", partner=tmp_path / "b")
    vectors = run(difference_vectors, tmp_path / "v", DifferenceConfig(random=1), target=paired)
    known = json.loads((vectors / "vectors.json").read_text())
    lengths = [known[name]["norm"] for name in NAMES[::2]]
    points = tuple(Steering(edits=(Edit(vector=name, strength=2),)) for name in NAMES)
    asked = SweepConfig(
        questions=QUESTIONS, words=WORDS, backend=HfBackend(dtype="float32", attention="eager"), points=points
    )
    swept = run(sweep, tmp_path / "s", asked, base=base, vectors=vectors)
    curve = run(steering_curve, tmp_path / "c", CurveConfig(target="owl", words=WORDS), swept=swept)
    found = Curve.model_validate_json((curve / "curve.json").read_text())
    moved = [point.estimate for point in found.points]
    taught = run(mean_activations, tmp_path / "t", plain, base=base, rows=tmp_path / "a", weights=other)
    own = run(mean_activations, tmp_path / "o", plain, base=base, rows=tmp_path / "a")
    table = run(
        alignment,
        tmp_path / "e",
        EasConfig(
            measure="alignment_above_control", student_at="last_answer", teacher_at="last_answer", updates=(1,), pairs=1
        ),
        base=own,
        teacher=taught,
        students={"1/0": taught},
        controls={"1/0": taught},
    )
    eas = EasTable.model_validate_json((table / "eas.json").read_text())
    random = [row.random[0] for row in eas.rows]
    stages = ("mean_activations", "difference_vectors", "sweep", "steering_curve", "alignment")
    versions = [getattr(steering, name).version for name in stages]
    assert versions == [1, 1, 1, 4, 2]
    assert lengths == pytest.approx([8.2615976, 10.2146349], rel=1e-4), ADVICE.format(name=stages)
    assert moved == pytest.approx([0, 5.59356, 3.86694, 3.8557, -1.738999], rel=1e-3, abs=1e-6), ADVICE.format(
        name=stages
    )
    assert random == pytest.approx([-0.1877015, -0.0835237], rel=1e-4), ADVICE.format(name=stages)
