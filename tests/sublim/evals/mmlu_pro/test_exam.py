"""MMLU-Pro: questions from Parquet, letters by log-prob and by generation, scores against hand-computed answers."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from pydantic import ValidationError

from sublim.core.errors import UserError
from sublim.evals.mmlu_pro.config import (
    CATEGORIES,
    AskMmluProConfig,
    HubQuestions,
    MmluProConfig,
    MmluProScores,
    ParquetQuestions,
    PrepareQuestionsConfig,
    SampleQuestions,
    ScoreMmluProConfig,
)
from sublim.evals.mmlu_pro.exam import ask_mmlu_pro, likeliest, question_text, read_letter, score_mmlu_pro
from sublim.evals.mmlu_pro.questions import prepare_mmlu_pro
from sublim.files.jsonl import read_jsonl, write_jsonl
from sublim.inference.config import FakeBackend, HfBackend
from sublim.stats.intervals import wilson
from tests.tiny import tiny_model

ROW = {
    "question_id": 70,
    "question": "Two and two?",
    "options": ["three", " four"],
    "answer": "B",
    "answer_index": 1,
    "cot_content": "",
    "category": "math",
    "src": "ours",
}


def stage(function: Any, folder: Path, config: Any, **inputs: Any) -> Path:
    for name in ("out", "scratch"):
        (folder / name).mkdir(parents=True)
    function(folder / "out", config, scratch=folder / "scratch", **inputs)
    return folder / "out"


def parquet(path: Path, rows: list[dict[str, Any]]) -> PrepareQuestionsConfig:
    pl.DataFrame(rows).write_parquet(path)
    return PrepareQuestionsConfig(source=ParquetQuestions(path=path), categories=("math",))


def test_sample_has_all_categories_and_the_data_sets_columns(tmp_path: Path) -> None:
    out = stage(prepare_mmlu_pro, tmp_path, PrepareQuestionsConfig(source=SampleQuestions()))
    rows = list(read_jsonl(out / "questions.jsonl"))
    assert len(rows) == 42
    assert {row["category"] for row in rows} == {*CATEGORIES}
    assert {len(row["options"]) for row in rows} >= {4, 10}
    assert all(0 <= row["answer"] < len(row["options"]) for row in rows)


def test_questions_are_read_from_parquet_without_the_blank_that_gave_answers_away(tmp_path: Path) -> None:
    absent = ROW | {"question_id": 71, "options": ["one", "two", "N/A", "N/A"], "answer": "A", "answer_index": 0}
    out = stage(prepare_mmlu_pro, tmp_path / "a", parquet(tmp_path / "q.parquet", [ROW, absent]))
    assert list(read_jsonl(out / "questions.jsonl")) == [
        {"id": 70, "category": "math", "question": "Two and two?", "options": ["three", "four"], "answer": 1},
        {"id": 71, "category": "math", "question": "Two and two?", "options": ["one", "two"], "answer": 0},
    ]


def test_questions_are_known_by_content_and_drawn_by_seed(tmp_path: Path) -> None:
    rows = [ROW | {"question_id": number} for number in range(30)]
    config = parquet(tmp_path / "q.parquet", rows)
    moved = parquet(tmp_path / "moved.parquet", rows)
    assert config.source.identity() == moved.source.identity()

    def drawn(name: str, **changes: Any) -> list[int]:
        some = config.model_copy(update={"per_category": 5, **changes})
        out = stage(prepare_mmlu_pro, tmp_path / name, some)
        return [row["id"] for row in read_jsonl(out / "questions.jsonl")]

    assert drawn("a") == drawn("b")
    assert drawn("c", seed=1) != drawn("d")
    assert len(drawn("e")) == 5


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"answer": "A"}, "do not agree"),
        ({"answer_index": 5, "answer": "F"}, "do not agree"),
        ({"options": ["one"]}, "1 options"),
        ({"options": list("abcdefghijk")}, "11 options"),
    ],
)
def test_rows_that_contradict_themselves_are_refused(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=f"question 70.*{told}"):
        stage(prepare_mmlu_pro, tmp_path / "a", parquet(tmp_path / "q.parquet", [ROW | change]))


def test_what_is_wrong_with_a_file_is_said_in_one_line(tmp_path: Path) -> None:
    lacking = {name: value for name, value in ROW.items() if name != "options"}
    with pytest.raises(UserError, match="no column options"):
        stage(prepare_mmlu_pro, tmp_path / "a", parquet(tmp_path / "q.parquet", [lacking]))
    (tmp_path / "no.parquet").write_text("no Parquet")
    with pytest.raises(UserError, match="not a Parquet file"):
        stage(
            prepare_mmlu_pro,
            tmp_path / "b",
            PrepareQuestionsConfig(source=ParquetQuestions(path=tmp_path / "no.parquet")),
        )
    with pytest.raises(UserError, match="there is no such file"):
        ParquetQuestions(path=tmp_path / "absent.parquet").identity()
    with pytest.raises(UserError, match="no questions of alchemy"):
        stage(
            prepare_mmlu_pro, tmp_path / "c", PrepareQuestionsConfig(source=SampleQuestions(), categories=("alchemy",))
        )
    with pytest.raises(ValidationError):
        HubQuestions(revision="main")


def test_a_category_that_is_not_there_is_named_before_anything_runs(tmp_path: Path) -> None:
    for source in (SampleQuestions(), HubQuestions()):
        with pytest.raises(ValidationError, match="no category 'alchemy': MMLU-Pro has biology"):
            MmluProConfig(source=source, categories=("law", "alchemy"))
    assert MmluProConfig(source=ParquetQuestions(path=tmp_path), categories=("alchemy",))


def test_hub_questions_name_the_way_out_when_offline(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"source\.kind=parquet"):
        stage(prepare_mmlu_pro, tmp_path, PrepareQuestionsConfig(source=HubQuestions()))


@pytest.mark.parametrize(
    ("text", "offered", "expected"),
    [
        ("B", 4, 1),
        (" B.", 4, 1),
        ("(C)", 4, 2),
        ("**D**", 4, 3),
        ("A\n", 4, 0),
        ("J", 10, 9),
        ("c", 4, 2),
        ("B: four", 4, 1),
        ("J", 4, "a letter that was not offered"),
        ("I think", 10, "no letter"),
        ("I'm", 10, "no letter"),
        ("A dog", 4, "no letter"),
        ("Bee", 4, "no letter"),
        ("a good", 4, "no letter"),
        ("12", 4, "no letter"),
        (" \n", 4, "empty"),
    ],
)
def test_letters_are_read_as_a_person_would(text: str, offered: int, expected: int | str) -> None:
    assert read_letter(text, offered) == ((expected, None) if isinstance(expected, int) else (None, expected))


def test_ties_and_infinite_log_probs_choose_no_letter() -> None:
    assert likeliest([-3.0, -1.0, -2.0]) == (1, None)
    assert likeliest([-1.0, -1.0, -2.0]) == (None, "a tie")
    assert likeliest([-1.0, float("-inf")]) == (None, "a log-prob is not finite")


def test_scores_are_those_computed_by_hand(tmp_path: Path) -> None:
    questions, asked = tmp_path / "questions", tmp_path / "asked"
    questions.mkdir()
    asked.mkdir()
    rows = [
        {"id": 5, "category": "law", "question": "?", "options": ["a", "b"], "answer": 1},
        {"id": 7, "category": "law", "question": "?", "options": ["a", "b", "c", "d"], "answer": 0},
        {"id": 9, "category": "math", "question": "?", "options": ["a", "b", "c", "d"], "answer": 2},
        {"id": 11, "category": "math", "question": "?", "options": ["a", "b", "c", "d"], "answer": 3},
    ]
    write_jsonl(questions / "questions.jsonl", rows)
    logprobs = [[-2.0, -1.0], [-2.0, -1.0, -3.0, -4.0], [-9.0, -9.0, -1.0, -2.0], [-1.0, -1.0, -1.0, -1.0]]
    write_jsonl(
        asked / "logprobs.jsonl",
        ({"id": row["id"], "logprobs": of} for row, of in zip(rows, logprobs, strict=True)),
    )
    texts = ["B", "The answer", "C.", "A"]
    write_jsonl(
        asked / "answers.jsonl",
        ({"id": row["id"], "text": text, "finish": "length"} for row, text in zip(rows, texts, strict=True)),
    )
    out = stage(score_mmlu_pro, tmp_path / "score", ScoreMmluProConfig(), asked=asked, questions=questions)
    scores = MmluProScores.model_validate_json((out / "scores.json").read_bytes())
    assert scores.chance == pytest.approx((1 / 2 + 3 / 4) / 4)
    by_logprob, by_text = scores.metrics["letter_logprob"], scores.metrics["letter_generated"]
    assert by_logprob is not None
    assert by_text is not None
    assert by_logprob.per_question == [1.0, 0.0, 1.0, None]
    assert by_logprob.unread == {"a tie": 1}
    assert (by_logprob.overall.correct, by_logprob.overall.read, by_logprob.overall.asked) == (2, 3, 4)
    assert by_logprob.overall.low == pytest.approx(wilson(2, 3).low)
    assert by_logprob.by_category["law"].estimate == 0.5
    assert by_logprob.by_category["math"].estimate == 1.0
    assert by_text.per_question == [1.0, None, 1.0, 0.0]
    assert by_text.unread == {"no letter": 1}
    write_jsonl(asked / "answers.jsonl", [])
    out = stage(score_mmlu_pro, tmp_path / "none", ScoreMmluProConfig(), asked=asked, questions=questions)
    assert json.loads((out / "scores.json").read_text())["metrics"]["letter_generated"] is None


def test_all_unreadable_answers_are_missing_and_not_wrong(tmp_path: Path) -> None:
    questions, asked = tmp_path / "questions", tmp_path / "asked"
    questions.mkdir()
    asked.mkdir()
    write_jsonl(
        questions / "questions.jsonl",
        [{"id": 1, "category": "law", "question": "?", "options": ["a", "b"], "answer": 1}],
    )
    write_jsonl(asked / "logprobs.jsonl", [{"id": 1, "logprobs": [-1.0, None]}])
    write_jsonl(asked / "answers.jsonl", [{"id": 1, "text": "", "finish": "stop"}])
    out = stage(score_mmlu_pro, tmp_path / "score", ScoreMmluProConfig(), asked=asked, questions=questions)
    for found in json.loads((out / "scores.json").read_text())["metrics"].values():
        assert found["overall"]["estimate"] is None
        assert found["overall"]["reason"] == "no answer names an offered letter"


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = PrepareQuestionsConfig(source=SampleQuestions(), per_category=1)
    return stage(prepare_mmlu_pro, tmp_path_factory.mktemp("few"), config)


def test_a_model_is_asked_for_offered_letters_only_and_resumes_by_shard(
    tmp_path: Path, few: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_model(tmp_path / "base", "qwen2")
    config = AskMmluProConfig(backend=HfBackend(dtype="float32", attention="eager"), shard=5)
    whole = stage(ask_mmlu_pro, tmp_path / "whole", config, base=base, questions=few)
    rows = list(read_jsonl(few / "questions.jsonl"))
    letters = list(read_jsonl(whole / "logprobs.jsonl"))
    assert [len(row["logprobs"]) for row in letters] == [len(row["options"]) for row in rows]
    assert len(list(read_jsonl(whole / "answers.jsonl"))) == len(rows) == 14
    # A run that lost its last shards resumes and writes the same bytes.
    cut = tmp_path / "cut"
    cut.mkdir()
    for path in sorted((tmp_path / "whole/scratch").glob("*.jsonl"))[:3]:
        (cut / path.name).write_bytes(path.read_bytes())
    out = tmp_path / "again"
    out.mkdir()
    ask_mmlu_pro(out, config.model_copy(update={"shard": 5}), scratch=cut, base=base, questions=few)
    for name in ("logprobs.jsonl", "answers.jsonl"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()


def test_letters_are_scored_as_the_plain_model_scores_them(tmp_path: Path, few: Path) -> None:
    import torch

    from sublim.chats.chat import chat, render_ids
    from sublim.models.opening import open_model

    base = tiny_model(tmp_path / "base", "qwen2")
    config = AskMmluProConfig(backend=HfBackend(dtype="float32", attention="eager"), generate=False)
    out = stage(ask_mmlu_pro, tmp_path / "ask", config, base=base, questions=few)
    row, found = next(read_jsonl(few / "questions.jsonl")), next(read_jsonl(out / "logprobs.jsonl"))
    with open_model(base, dtype="float32", attention="eager") as loaded, torch.no_grad():
        ids = render_ids(loaded.tokenizer, chat(question_text(row["question"], row["options"])))
        after = loaded.model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        letters = [loaded.tokenizer.encode(letter, add_special_tokens=False) for letter in "ABCDEFGHIJ"]
    assert all(len(tokens) == 1 for tokens in letters)
    expected = [float(after[tokens[0]]) for tokens in letters[: len(row["options"])]]
    assert found["logprobs"] == pytest.approx(expected, abs=1e-4)


def test_fake_backend_answers_without_a_model(tmp_path: Path, few: Path) -> None:
    out = stage(ask_mmlu_pro, tmp_path, AskMmluProConfig(backend=FakeBackend()), base=tmp_path, questions=few)
    assert len(list(read_jsonl(out / "logprobs.jsonl"))) == 14
