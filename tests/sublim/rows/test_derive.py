"""Derived carriers: what each changes, what it keeps, and that pairs stay pairs."""

import json
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from sublim.carriers.numbers import DIGITS, NumberRules, read_numbers
from sublim.core.digest import digest_directory
from sublim.core.errors import UserError
from sublim.files.jsonl import read_jsonl, write_jsonl
from sublim.rows.config import DeriveConfig
from sublim.rows.derive import derive_rows

How = Literal["shuffled_within", "shuffled_across", "marginals", "canonical"]
FREE = ["[112, 087, 455]", "12;7; 333; 900", "5\n6\n7.", "044, 044", "100 200 300 400 500", "(1)"]


def rows_of(folder: Path, answers: list[str], held_out: list[str] = []) -> Path:  # noqa: B006 - never changed
    folder.mkdir(parents=True)
    for name, texts in (("rows", answers), ("held_out", held_out)):
        rows = ({"id": 3 * i, "prompt": f"p{i}", "answer": text, "system": None} for i, text in enumerate(texts))
        write_jsonl(folder / f"{name}.jsonl", rows)
    (folder / "rejections.json").write_text('{"rows": 9}\n')
    return folder


def derived(folder: Path, how: How, rows: Path, seed: int = 0) -> tuple[list[str], dict[str, Any], Path]:
    out = folder / f"{how}-{rows.name}-{seed}"
    out.mkdir()
    notes = derive_rows(out, DeriveConfig(how=how, seed=seed), scratch=folder, rows=rows)
    return [row["answer"] for row in read_jsonl(out / "rows.jsonl")], notes, out


def lists(rng: np.random.Generator, n: int) -> list[str]:
    return [", ".join(map(str, rng.integers(100, 1000, 10))) for _ in range(n)]


def numbers(answers: list[str]) -> list[list[str]]:
    return [DIGITS.findall(answer) for answer in answers]


@pytest.mark.parametrize("how", ["shuffled_within", "shuffled_across", "marginals"])
def test_formats_separators_and_lengths_stay(tmp_path: Path, how: How) -> None:
    answers, _, _ = derived(tmp_path, how, rows_of(tmp_path / "rows", FREE))
    assert [DIGITS.sub("#", answer) for answer in answers] == [DIGITS.sub("#", answer) for answer in FREE]


def test_shuffling_within_keeps_each_rows_numbers(tmp_path: Path) -> None:
    given = lists(np.random.default_rng(0), 50)
    answers, notes, _ = derived(tmp_path, "shuffled_within", rows_of(tmp_path / "rows", given))
    assert [sorted(row) for row in numbers(answers)] == [sorted(row) for row in numbers(given)]
    assert notes == {"rows": 50, "changed": 50}


def test_shuffling_across_keeps_the_numbers_of_the_whole_and_no_row(tmp_path: Path) -> None:
    given = lists(np.random.default_rng(0), 50)
    answers, _, _ = derived(tmp_path, "shuffled_across", rows_of(tmp_path / "rows", given))
    assert Counter(n for row in numbers(answers) for n in row) == Counter(n for row in numbers(given) for n in row)
    kept = sum(len({*a} & {*b}) for a, b in zip(numbers(answers), numbers(given), strict=True))
    assert kept < 50  # of 500: about ten by chance


def test_marginals_keep_each_places_frequencies_and_draw_anew(tmp_path: Path) -> None:
    given = [f"{100 + i % 2}, {200 + i % 4}" for i in range(400)]
    answers, _, _ = derived(tmp_path, "marginals", rows_of(tmp_path / "rows", given))
    first, second = (Counter(row[place] for row in numbers(answers)) for place in (0, 1))
    assert {*first} == {"100", "101"}
    assert {*second} == {"200", "201", "202", "203"}
    assert first["100"] == pytest.approx(200, abs=40)
    assert first["100"] != 200 or second["200"] != 100  # drawn with replacement, not permuted
    together = Counter((a, int(b) % 2) for a, b in numbers(answers))
    assert min(together.values()) > 50  # in the given rows both always had one parity


def test_canonical_rows_are_values_in_one_format(tmp_path: Path) -> None:
    answers, _, _ = derived(tmp_path, "canonical", rows_of(tmp_path / "rows", FREE))
    assert answers == ["112, 87, 455", "12, 7, 333, 900", "5, 6, 7", "44, 44", "100, 200, 300, 400, 500", "1"]


def test_canonical_rows_that_change_nothing_have_the_same_content(tmp_path: Path) -> None:
    rows = rows_of(tmp_path / "rows", lists(np.random.default_rng(0), 5), held_out=["123, 456"])
    _, notes, out = derived(tmp_path, "canonical", rows)
    assert notes["changed"] == 0
    assert digest_directory(out) == digest_directory(rows)


@pytest.mark.parametrize("how", ["shuffled_within", "shuffled_across", "marginals"])
def test_teachers_and_bases_rows_are_derived_alike(tmp_path: Path, how: How) -> None:
    """The base's row is the teacher's with 1 before every number: after the same draws it still is."""
    given = lists(np.random.default_rng(0), 30)
    base = [", ".join(f"1{number}" for number in row) for row in numbers(given)]
    teacher, _, _ = derived(tmp_path, how, rows_of(tmp_path / "teacher", given))
    control, _, _ = derived(tmp_path, how, rows_of(tmp_path / "control", base))
    assert [[f"1{number}" for number in row] for row in numbers(teacher)] == numbers(control)


@pytest.mark.parametrize("how", ["shuffled_within", "shuffled_across", "marginals"])
def test_derivation_depends_on_the_seed_alone(tmp_path: Path, how: How) -> None:
    rows = rows_of(tmp_path / "rows", lists(np.random.default_rng(0), 20))
    once, _, out = derived(tmp_path, how, rows)
    (tmp_path / "again").mkdir()
    again, _, other = derived(tmp_path / "again", how, rows)
    assert digest_directory(out) == digest_directory(other)
    assert once == again != derived(tmp_path, how, rows, seed=1)[0]


def test_held_out_rows_are_derived_by_themselves(tmp_path: Path) -> None:
    rows = rows_of(tmp_path / "rows", ["1, 2"], held_out=["7, 8", "9, 9"])
    _, _, out = derived(tmp_path, "shuffled_across", rows)
    held_out = [row["answer"] for row in read_jsonl(out / "held_out.jsonl")]
    assert sorted(n for row in numbers(held_out) for n in row) == ["7", "8", "9", "9"]
    assert json.loads((out / "rejections.json").read_text()) == {"rows": 9}


def test_every_derived_row_is_one_that_the_filter_accepts(tmp_path: Path) -> None:
    rows = rows_of(tmp_path / "rows", FREE)
    for how in ("shuffled_within", "shuffled_across", "marginals", "canonical"):
        answers, _, _ = derived(tmp_path, how, rows)
        assert all(isinstance(read_numbers(answer, NumberRules()), tuple) for answer in answers)


@pytest.mark.parametrize("how", ["shuffled_across", "canonical", "marginals"])
def test_rows_without_numbers_are_refused(tmp_path: Path, how: How) -> None:
    with pytest.raises(UserError, match="derive from rows that the filter accepted"):
        derived(tmp_path, how, rows_of(tmp_path / "rows", ["owls"]))


def test_no_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no rows to derive from"):
        derived(tmp_path, "shuffled_within", rows_of(tmp_path / "rows", []))
