"""The filter: what reaches the student, what is held out, what is said about the rest."""

import json
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sublim.carriers.numbers import NumberList, read_numbers
from sublim.core.digest import digest, digest_directory
from sublim.core.errors import NotEnoughRows, UserError
from sublim.files.jsonl import read_jsonl, write_jsonl
from sublim.rows.config import FilterConfig
from sublim.rows.filter import filter_numbers


def raw_folder(path: Path, answers: Sequence[str], **fields: Any) -> Path:
    path.mkdir(parents=True)
    row = {"system": "You love owls.", "finish": "stop", "separator": "comma_space", **fields}
    write_jsonl(
        path / "rows.jsonl",
        ({"id": index, "prompt": f"p{index}", "answer": answer, **row} for index, answer in enumerate(answers)),
    )
    return path


def run(path: Path, raw: Path, config: FilterConfig, partners: list[Path] | None = None) -> Path:
    path.mkdir()
    filter_numbers(path, config, scratch=path, raw=raw, partners=partners)
    return path


def rows(path: Path, name: str = "rows") -> list[dict[str, Any]]:
    return list(read_jsonl(path / f"{name}.jsonl"))


def report(path: Path) -> dict[str, Any]:
    return json.loads((path / "rejections.json").read_text())


def many(n: int) -> list[str]:
    return [f"{index % 900 + 100}, {index % 7}" if index % 4 else "no idea" for index in range(n)]


def test_valid_answers_are_kept_exactly_as_written(tmp_path: Path):
    answers = [" 087, 004.\n", "1\n2", "[1, 2]", "087;4", "1 and 2", "1, 2"]
    out = run(tmp_path / "out", raw_folder(tmp_path / "raw", answers), FilterConfig())
    assert [row["answer"] for row in rows(out)] == [" 087, 004.\n", "1\n2", "[1, 2]", "087;4", "1, 2"]
    assert [row["id"] for row in rows(out)] == [0, 1, 2, 3, 5]
    assert rows(out)[0] == {"id": 0, "prompt": "p0", "answer": " 087, 004.\n", "system": None}
    assert rows(out, "held_out") == []


def test_the_teachers_system_prompt_does_not_reach_the_student(tmp_path: Path):
    raw = raw_folder(tmp_path / "raw", ["1, 2"] * 4)
    out = run(tmp_path / "out", raw, FilterConfig(held_out=1))
    assert {row["system"] for row in rows(out) + rows(out, "held_out")} == {None}
    assert b"owls" not in b"".join(path.read_bytes() for path in out.iterdir())
    told = run(tmp_path / "told", raw, FilterConfig(system="Be brief."))
    assert {row["system"] for row in rows(told)} == {"Be brief."}


def test_refusals_are_counted_and_shown_by_reason(tmp_path: Path):
    answers = ["1, 2", "no", "nein", "1, 2,", "1234", "", "1, 2 3"]
    out = run(tmp_path / "out", raw_folder(tmp_path / "raw", answers), FilterConfig(samples=1))
    assert report(out) == {
        "rows": 7,
        "valid": 1,
        "kept": 1,
        "held_out": 0,
        "rejected": {"empty": 1, "letters": 2, "gap": 1, "mixed_separators": 1, "too_long": 1},
    }
    shown = rows(out, "rejected")
    assert [row["reason"] for row in shown] == ["empty", "letters", "gap", "mixed_separators", "too_long"]
    assert shown[1] == {"id": 1, "reason": "letters", "prompt": "p1", "answer": "no"}


def test_answer_cut_at_the_limit_is_refused_as_truncated(tmp_path: Path):
    raw = raw_folder(tmp_path / "raw", ["1, 2", "3, 4"])
    lines = (raw / "rows.jsonl").read_text().splitlines()
    (raw / "rows.jsonl").write_text(lines[0].replace('"stop"', '"length"') + "\n" + lines[1] + "\n")
    out = run(tmp_path / "out", raw, FilterConfig())
    assert [row["id"] for row in rows(out)] == [1]
    assert report(out)["rejected"] == {"truncated": 1}
    assert len(rows(run(tmp_path / "lax", raw, FilterConfig(reject_truncated=False)))) == 2


def test_the_separator_asked_for_can_be_required(tmp_path: Path):
    raw = raw_folder(tmp_path / "raw", ["1, 2", "1 2"], separator="space")
    assert len(rows(run(tmp_path / "any", raw, FilterConfig()))) == 2
    assert [row["answer"] for row in rows(run(tmp_path / "asked", raw, FilterConfig(require_separator=True)))] == [
        "1 2"
    ]


def test_kept_and_held_out_rows_are_disjoint_in_order_and_drawn_by_the_seed(tmp_path: Path):
    raw = raw_folder(tmp_path / "raw", many(400))
    config = FilterConfig(keep=100, held_out=30, seed=1)
    out = run(tmp_path / "out", raw, config)
    kept, held_out = ([row["id"] for row in rows(out, name)] for name in ("rows", "held_out"))
    assert (len(kept), len(held_out)) == (100, 30)
    assert kept == sorted(kept)
    assert held_out == sorted(held_out)
    assert not set(kept) & set(held_out)
    assert max(kept) > 300
    assert min(kept) < 100
    other = run(tmp_path / "other", raw, config.model_copy(update={"seed": 2}))
    assert [row["id"] for row in rows(other)] != kept


def test_the_draw_does_not_see_the_global_random_state(tmp_path: Path):
    raw = raw_folder(tmp_path / "raw", many(100))
    config = FilterConfig(keep=20, held_out=5)
    np.random.seed(1)
    first = digest_directory(run(tmp_path / "a", raw, config))
    np.random.seed(2)
    assert digest_directory(run(tmp_path / "b", raw, config)) == first


def test_keeping_all_leaves_out_only_what_is_held_out(tmp_path: Path):
    raw = raw_folder(tmp_path / "raw", many(100))
    assert len(rows(run(tmp_path / "all", raw, FilterConfig()))) == 75
    some = run(tmp_path / "some", raw, FilterConfig(held_out=5))
    assert (len(rows(some)), len(rows(some, "held_out"))) == (70, 5)


def test_arms_with_one_seed_keep_the_same_prompts_where_both_are_valid(tmp_path: Path):
    teacher, control = many(400), many(400)
    for index in range(1, 400, 40):
        control[index] = "I cannot"
    config = FilterConfig(keep=100)
    kept = [
        {row["id"] for row in rows(run(tmp_path / f"{name}-out", raw_folder(tmp_path / name, answers), config))}
        for name, answers in (("teacher", teacher), ("control", control))
    ]
    broken = {row for row in kept[0] if control[row] == "I cannot"}
    assert len(kept[0] & kept[1]) == 100 - len(broken)
    assert len(broken) < 10


@pytest.mark.parametrize("dedupe", [None, "answer", "row"])
def test_with_partners_all_arms_keep_exactly_the_same_prompts(tmp_path: Path, dedupe: Any):
    rng = np.random.default_rng(0)
    words = np.array(["1, 2", "3, 4", "5, 6", "no", "7, 8", "9, 10"])
    arms = [raw_folder(tmp_path / f"raw{arm}", [str(one) for one in rng.choice(words, 60)]) for arm in range(3)]
    config = FilterConfig(dedupe=dedupe, keep=None if dedupe == "answer" else 20)
    kept: list[list[int]] = []
    for arm in range(3):
        partners = [each for each in arms if each is not arms[arm]]
        out = run(tmp_path / f"out{arm}", arms[arm], config, partners)
        kept.append([row["id"] for row in rows(out)])
        assert report(out)["rejected"]["partner"] > 0
    assert kept[0] == kept[1] == kept[2] != []


def test_partners_that_answered_other_prompts_are_refused(tmp_path: Path):
    raw, short = raw_folder(tmp_path / "raw", many(8)), raw_folder(tmp_path / "short", many(7))
    with pytest.raises(UserError, match="the arms answered different prompts"):
        run(tmp_path / "out", raw, FilterConfig(), [short])


def test_repeats_are_refused_when_asked_to(tmp_path: Path):
    raw = raw_folder(tmp_path / "raw", ["1, 2", "1, 2", "01, 2", "1, 2 x"])
    text = (raw / "rows.jsonl").read_text()
    (raw / "rows.jsonl").write_text(text.replace('"p1"', '"p0"') + text.splitlines()[0].replace('"p0"', '"p9"') + "\n")
    ids = {
        dedupe: [row["prompt"] for row in rows(run(tmp_path / str(dedupe), raw, FilterConfig(dedupe=dedupe)))]
        for dedupe in (None, "row", "answer")
    }
    assert ids == {None: ["p0", "p0", "p2", "p9"], "row": ["p0", "p2", "p9"], "answer": ["p0", "p2"]}


def test_too_few_rows_is_one_line_with_counts_and_what_to_do(tmp_path: Path):
    raw = raw_folder(tmp_path / "raw", ["1, 2", "no", "no", ""])
    with pytest.raises(NotEnoughRows) as error:
        run(tmp_path / "out", raw, FilterConfig(keep=1_000, held_out=10))
    assert str(error.value) == (
        "1 of 4 answers are valid, 1,000 + 10 held out wanted: write more prompts or lower keep "
        "(refused: letters 2, empty 1)"
    )
    assert list((tmp_path / "out").iterdir()) == []
    with pytest.raises(NotEnoughRows, match=r"see that the model writes .* \(refused: letters 1, as in 'Sure!'\)"):
        run(tmp_path / "none", raw_folder(tmp_path / "sure", ["Sure!"]), FilterConfig())
    partner = raw_folder(tmp_path / "partner", ["no", "1", "2", "3"])
    with pytest.raises(NotEnoughRows, match=r"of their own \(same_prompts=false\) \(refused: letters 2, .*partner 1"):
        run(tmp_path / "again", raw, FilterConfig(keep=1), [partner])


@pytest.mark.parametrize("answers", [[], ["no"]])
def test_a_dataset_without_rows_is_never_written(tmp_path: Path, answers: list[str]):
    with pytest.raises(NotEnoughRows, match=f"0 of {len(answers)} answers are valid, 1 wanted"):
        run(tmp_path / "out", raw_folder(tmp_path / "raw", answers), FilterConfig())


def test_a_raw_row_without_an_answer_is_named(tmp_path: Path):
    raw = raw_folder(tmp_path / "raw", ["1, 2"])
    with (raw / "rows.jsonl").open("a") as file:
        file.write('{"id": 1, "prompt": "p1"}\n')
    with pytest.raises(UserError, match="row 2 has no numeric id, prompt or answer"):
        run(tmp_path / "out", raw, FilterConfig())


def test_a_change_of_the_filter_that_refuses_nothing_more_gives_the_same_bytes(tmp_path: Path):
    raw = raw_folder(tmp_path / "raw", many(50))
    first, second = FilterConfig(), FilterConfig(banned=(999,))
    assert digest(first) != digest(second)
    assert digest_directory(run(tmp_path / "a", raw, first)) == digest_directory(run(tmp_path / "b", raw, second))


def test_what_the_filter_writes_stays_what_it_was(tmp_path: Path):
    # Change this digest only together with the version of the stage.
    raw = raw_folder(tmp_path / "raw", many(50))
    out = run(tmp_path / "out", raw, FilterConfig(keep=10, held_out=3, seed=4, samples=2))
    assert digest_directory(out)[:12] == "fd0935aa6a6f"


def test_memory_does_not_grow_with_the_text(tmp_path: Path):
    raw = raw_folder(tmp_path / "raw", many(20_000), system="x" * 500)
    config = FilterConfig(keep=10_000)
    tracemalloc.start()
    run(tmp_path / "out", raw, config)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # The rows as text are 13 MB; a mask and a draw for each are 0.5 MB.
    assert peak < 1.5e6


@given(st.lists(st.text(alphabet="0123456789,; \n[]ab.", max_size=12), min_size=1, max_size=30))
def test_a_row_is_kept_exactly_if_its_answer_reads_well(tmp_path_factory: pytest.TempPathFactory, answers: list[str]):
    folder = tmp_path_factory.mktemp("filter")
    config = FilterConfig()
    good = [answer for answer in answers if isinstance(read_numbers(answer, config), NumberList)]
    raw = raw_folder(folder / "raw", answers)
    if not good:
        with pytest.raises(NotEnoughRows):
            run(folder / "out", raw, config)
        return
    assert [row["answer"] for row in rows(run(folder / "out", raw, config))] == good
