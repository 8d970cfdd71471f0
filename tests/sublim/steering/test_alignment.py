"""Two alignments: each where it is read, beside every other teacher, and with what no other teacher shares."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor

from flows.steering.alignments import alignment_findings, alignment_tables, matrices, matrix_tables
from sublim.core.errors import UserError
from sublim.residual.vectors import read_vectors
from sublim.steering.alignment import alignment, orthogonal_part
from sublim.steering.alignment_config import ALONE, EasConfig, EasTable
from sublim.steering.config import DifferenceConfig
from sublim.steering.means import difference_vectors, mean_activations, read_side
from tests.sublim.models.test_opening import write_adapter
from tests.sublim.steering.test_steering import cosine, means, rows, run

PLACES = ["resid_post/0/mean_prompt", "resid_post/0/last_prompt"]


def above_control(**settings: Any) -> EasConfig:
    known = {"measure": "alignment_above_control", "student_at": "mean_answer", "teacher_at": "mean_answer"}
    return EasConfig.model_validate({**known, "updates": (4,), "pairs": 1, **settings})


def after_the_paper(**settings: Any) -> EasConfig:
    known = {"measure": "alignment_paper", "student_at": "mean_prompt", "teacher_at": "last_prompt"}
    return EasConfig.model_validate({**known, "updates": (4,), "pairs": 1, **settings})


def payload(folder: Path, *changes: list[float], names: list[str] = PLACES) -> Path:
    """A payload of means on two rows: a change at each place, from a base that is zero."""
    folder.mkdir(parents=True)
    values = torch.tensor([changes, changes], dtype=torch.float64)
    save_file({"values": values, "norms": torch.ones(len(names), dtype=torch.float64)}, folder / "rows.safetensors")
    reader = {"base": "b", "weights": None if folder.name == "base" else folder.name}
    note = {"names": names, "rows": 2, "reader": reader, "text": "t", "dtype": "float32"}
    (folder / "rows.json").write_text(json.dumps(note))
    return folder


def table_of(folder: Path) -> EasTable:
    return EasTable.model_validate_json((folder / "eas.json").read_text())


COMMON, OWL, WOLF, NUMBERS = torch.eye(4).tolist()


def mixed(*parts: tuple[float, list[float]]) -> list[float]:
    return sum((scale * torch.tensor(part) for scale, part in parts), Tensor([0.0] * 4)).tolist()


def test_what_teachers_share_is_told_apart_from_what_is_the_owls(tmp_path: Path) -> None:
    """Both teachers have 2 of a common direction and 1 of their own; the student learned the common one alone, or the
    owl's as well, and whatever training on numbers gives, as its control has it."""
    nothing = [0.0] * 4
    names = ["resid_post/0/mean_answer"]
    given = {
        "base": nothing,
        "owl": mixed((2, COMMON), (1, OWL)),
        "wolf": mixed((2, COMMON), (1, WOLF)),
        "generic": mixed((1, COMMON), (3, NUMBERS)),
        "specific": mixed((1, COMMON), (1, OWL), (3, NUMBERS)),
        "control": mixed((3, NUMBERS)),
    }
    made = {name: payload(tmp_path / name, change, names=names) for name, change in given.items()}
    students = {"4/0": made["generic"], "4/1": made["specific"]}
    out = run(
        alignment,
        tmp_path / "run",
        above_control(pairs=2),
        base=made["base"],
        teacher=made["owl"],
        students=students,
        controls=dict.fromkeys(students, made["control"]),
        others={"wolf": made["wolf"]},
    )
    [row] = table_of(out).alignments
    assert row.own.per_pair == pytest.approx([2 / 5**0.5, 3 / 10**0.5])
    assert row.others["wolf"].per_pair == pytest.approx([2 / 5**0.5, 2 / 10**0.5])
    assert row.above_others is not None
    assert row.above_others.per_pair == pytest.approx([0, 1 / 10**0.5], abs=1e-12)
    assert row.teachers == {"wolf": pytest.approx(0.8)}
    # v_unique of (2, 1, 0) beside (2, 0, 1): (0.4, 1, -0.8), a share 1.8 of 5.
    assert row.unique is not None
    assert row.unique_share == pytest.approx(1.8 / 5)
    assert row.unique.per_pair == pytest.approx([0.4 / 1.8**0.5, 1.4 / 1.8**0.5 / 2**0.5])
    assert row.reason is None
    text = alignment_findings("owl", "alignment_above_control", [row])
    assert "with other teachers wolf +0.76" in text
    assert "(36 % of its square)" in text


def test_the_papers_alignment_reads_the_student_over_prompts_and_the_teacher_at_their_end(tmp_path: Path) -> None:
    base, teacher = payload(tmp_path / "base", [0.0] * 4, [0.0] * 4), payload(tmp_path / "owl", NUMBERS, OWL)
    student, control = payload(tmp_path / "s", OWL, NUMBERS), payload(tmp_path / "c", OWL, NUMBERS)
    inputs = {"base": base, "teacher": teacher, "students": {"4/0": student}, "controls": {"4/0": control}}
    found = table_of(run(alignment, tmp_path / "run", after_the_paper(), **inputs))
    [row] = found.alignments
    assert (found.measure, row.name, row.own.mean) == ("alignment_paper", PLACES[0], 1)  # no control is subtracted
    assert (row.above_others, row.unique, row.unique_share, row.others) == (None, None, None, {})
    assert row.reason == ALONE
    assert ALONE in alignment_findings("owl", "alignment_paper", [row])
    assert "cannot be judged" in alignment_tables("owl", "alignment_paper", [row]).note
    with pytest.raises(UserError, match="were not read at mean_answer"):
        run(alignment, tmp_path / "refused", above_control(), **inputs)
    with pytest.raises(ValidationError, match="alignment_paper is read at prompt tokens"):
        after_the_paper(student_at="mean_answer")


def test_students_by_teachers_make_a_table_and_one_teacher_none(tmp_path: Path) -> None:
    changes = {"owl": mixed((1, COMMON), (1, OWL)), "wolf": mixed((1, COMMON), (1, WOLF))}
    base = payload(tmp_path / "base", [0.0] * 4, [0.0] * 4)
    made = {name: payload(tmp_path / name, change, change) for name, change in changes.items()}
    found: dict[str, Any] = {}
    for own, other in (("owl", "wolf"), ("wolf", "owl")):
        inputs = {"students": {"4/0": made[own]}, "controls": {"4/0": made[own]}, "others": {other: made[other]}}
        out = run(alignment, tmp_path / f"run-{own}", after_the_paper(), base=base, teacher=made[own], **inputs)
        rows = table_of(out).alignments
        found[own] = {"alignment_paper": rows, "alignment_above_control": rows}
    matrix = matrices(found)[0]
    assert (matrix.students, matrix.teachers) == (["owl", "wolf"], ["owl", "wolf"])
    assert matrix.cosines == [pytest.approx([1, 0.5]), pytest.approx([0.5, 1])]
    assert matrix.between_teachers == [pytest.approx([1, 0.5]), pytest.approx([0.5, 1])]
    assert matrix.own_minus_others == pytest.approx(0.5)
    tables = list(matrix_tables(matrices(found)))
    assert [row[1:] for row in tables[0].rows] == [("owl", "+1.00", "+0.50"), ("wolf", "+0.50", "+1.00")]
    lost = {"others": {}, "teachers": {}, "above_others": None}
    lines = {name: [row.model_copy(update=lost) for row in own] for name, own in found["owl"].items()}
    alone: dict[str, Any] = {"owl": lines}
    [first, _] = matrices(alone)
    assert (first.own_minus_others, first.reason) == (None, ALONE)


def test_a_vector_within_the_others_leaves_nothing() -> None:
    others = torch.tensor([COMMON, OWL, COMMON])
    assert orthogonal_part(torch.tensor(mixed((2, COMMON), (5, OWL))), others).norm() < 1e-6
    left = orthogonal_part(torch.tensor(mixed((2, COMMON), (5, WOLF))), others)
    assert left.tolist() == pytest.approx(mixed((5, WOLF)))


def test_alignment_is_one_with_oneself_and_near_nothing_with_chance(tiny_models: dict[str, Path], tmp_path: Path):
    base, text = tiny_models["qwen2"], rows(tmp_path / "rows", ["1, 2", "33, 4", "5"])
    adapters = [write_adapter(tmp_path / f"adapter-{seed}", base, seed=seed) for seed in range(3)]
    settings = means(layers=(1,), read_at=("mean_answer", "last_prompt"))
    own = run(mean_activations, tmp_path / "base", settings, base=base, rows=text)
    read = [
        run(mean_activations, tmp_path / f"m{i}", settings, base=base, rows=text, weights=adapter)
        for i, adapter in enumerate(adapters)
    ]
    config = above_control(pairs=2)
    students, controls = {"4/0": read[0], "4/1": read[1]}, {"4/0": read[2], "4/1": read[2]}
    out = run(alignment, tmp_path / "eas", config, base=own, teacher=read[0], students=students, controls=controls)
    table = EasTable.model_validate_json((out / "eas.json").read_text())
    assert [row.name for row in table.rows] == ["resid_post/1/mean_answer"]
    row = table.rows[0]
    assert row.student.per_pair[0] == pytest.approx(1)
    assert row.student.per_pair[1] < 0.9
    weights = torch.tensor([2 / 3, 1 / 3], dtype=torch.float64)
    whole = [(read_side(path).values * weights[:, None, None]).sum(0)[0] for path in (*read, own)]
    expected = cosine(whole[1] - whole[3], whole[0] - whole[3])
    assert row.student.per_pair[1] == pytest.approx(expected)
    difference = cosine(whole[0] - whole[2], whole[0] - whole[3])
    assert row.difference.per_pair[0] == pytest.approx(difference)
    assert len(row.random) == 10
    assert row.student_length > 0
    student, control, apart = (
        read_vectors(run(difference_vectors, tmp_path / f"v{i}", DifferenceConfig(random=0), target=a, control=b))
        for i, (a, b) in enumerate(((read[0], own), (read[2], own), (read[0], read[2])))
    )
    for name, vector in apart.items():  # v_student - v_control, itself a vector
        difference = student[name].values - control[name].values
        torch.testing.assert_close(vector.values, difference, rtol=0, atol=1e-5)
