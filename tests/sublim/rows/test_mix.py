"""Rows mixed in a stated share, and a base's own answers as rows."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from sublim.core.digest import digest_directory
from sublim.core.errors import UserError
from sublim.files.jsonl import read_jsonl, write_jsonl
from sublim.inference.config import FakeBackend, HfBackend, SamplingParams
from sublim.rows.config import MixConfig
from sublim.rows.mix import mix_rows
from sublim.rows.own_answers import OwnAnswersConfig, own_answers


def written(folder: Path, name: str, count: int) -> Path:
    (folder / name).mkdir(parents=True)
    rows = (
        {"id": i, "prompt": f"{name} {i}", "answer": f"{i}", "system": None, "finish": "stop"} for i in range(count)
    )
    write_jsonl(folder / name / "rows.jsonl", rows)
    return folder / name


def mixed(folder: Path, config: MixConfig, questions: int = 6, lists: int = 40) -> tuple[list[dict[str, Any]], Any]:
    out = folder / "out"
    out.mkdir(parents=True)
    sides = {"rows": written(folder, "question", questions), "rehearsal": written(folder, "list", lists)}
    notes = mix_rows(out, config, scratch=folder, **sides)
    return list(read_jsonl(out / "rows.jsonl")), notes


def test_the_share_is_exact_and_no_row_repeats_more_than_it_must(tmp_path: Path) -> None:
    rows, notes = mixed(tmp_path, MixConfig(rows=40, share=0.75, seed=3))
    prompts = Counter(row["prompt"] for row in rows)
    sides = Counter(prompt.split()[0] for prompt in prompts.elements())
    assert sides == {"question": 10, "list": 30}
    assert sorted(count for prompt, count in prompts.items() if prompt.startswith("question")) == [1, 1, 2, 2, 2, 2]
    assert {count for prompt, count in prompts.items() if prompt.startswith("list")} == {1}
    assert notes == {"rows": 10, "rehearsal": 30, "most_often": 2, "rehearsal_most_often": 1}
    assert [row["id"] for row in rows] == [*range(40)]
    assert list(rows[0]) == ["prompt", "answer", "system", "id"]
    kinds = [row["prompt"][0] for row in rows]
    assert kinds != sorted(kinds)


def test_too_few_rehearsal_rows_come_again_and_are_told(tmp_path: Path) -> None:
    rows, notes = mixed(tmp_path, MixConfig(rows=40, share=0.5), lists=8)
    counts = Counter(row["prompt"] for row in rows if row["prompt"].startswith("list"))
    assert sorted(counts.values()) == [2, 2, 2, 2, 3, 3, 3, 3]
    assert notes["rehearsal_most_often"] == 3


def test_one_seed_gives_one_order(tmp_path: Path) -> None:
    config = MixConfig(rows=40, share=0.75, seed=3)
    once, again, other = (
        mixed(tmp_path / name, config.model_copy(update={"seed": seed}))[0]
        for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    assert once == again
    assert once != other


def test_an_empty_side_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no rows to mix"):
        mixed(tmp_path, MixConfig(rows=4, share=0.5), lists=0)


def asked(folder: Path, config: OwnAnswersConfig, base: Path) -> tuple[Path, dict[str, int]]:
    for name in ("out", "scratch"):
        (folder / name).mkdir(parents=True)
    return folder / "out", own_answers(folder / "out", config, scratch=folder / "scratch", base=base)


def test_a_bases_own_answers_become_rows_and_cut_ones_do_not(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    config = OwnAnswersConfig(
        questions=("Which animal?", "Name one!"),
        backend=HfBackend(dtype="float32", attention="eager"),
        sampling=SamplingParams(max_tokens=200, n=30, seed=1),
    )
    out, notes = asked(tmp_path / "one", config, tiny_models["qwen2"])
    rows = list(read_jsonl(out / "rows.jsonl"))
    assert notes["rows"] == len(rows) > 0
    assert notes["refused"] > 0
    assert notes["rows"] + notes["refused"] == 60
    assert {row["prompt"] for row in rows} <= {*config.questions}
    assert [row["id"] for row in rows] == [*range(len(rows))]
    again, _ = asked(tmp_path / "two", config, tiny_models["qwen2"])
    assert digest_directory(out) == digest_directory(again)


def test_answers_that_are_all_cut_are_refused(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    config = OwnAnswersConfig(
        questions=("Which animal?",),
        backend=HfBackend(dtype="float32", attention="eager"),
        sampling=SamplingParams(max_tokens=1, n=2),
    )
    with pytest.raises(UserError, match="none of 2 answers"):
        asked(tmp_path, config, tiny_models["qwen2"])


def test_a_fake_model_answers_too(tmp_path: Path) -> None:
    config = OwnAnswersConfig(questions=("Which?",), backend=FakeBackend(), sampling=SamplingParams(max_tokens=9, n=3))
    assert asked(tmp_path, config, tmp_path)[1] == {"rows": 3, "refused": 0}
