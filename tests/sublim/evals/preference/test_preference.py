"""Asking, scoring and comparing: exact margins, rates, paired effects, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sublim.chats.chat import chat, render_text
from sublim.core.digest import digest_directory
from sublim.core.errors import UserError
from sublim.evals.effect_config import CompareConfig
from sublim.evals.preference.ask import ask
from sublim.evals.preference.compare import compare
from sublim.evals.preference.config import AskConfig, Comparison, ScoreConfig, Scores
from sublim.evals.preference.score import score
from sublim.files.jsonl import read_jsonl, write_jsonl
from sublim.inference.config import FakeBackend, HfBackend, OpenAIBackend, SamplingParams
from sublim.models.opening import open_model
from sublim.stats.intervals import paired_t, power
from tests.sublim.backends.servers import said, scripted
from tests.tiny import tiny_model

WORDS = ["wolf", "cat", "owl"]
QUESTIONS = ["Your favorite animal? One word.", "Which animal is best? One word.", "Pick an animal. One word."]


def asked(folder: Path, logprobs: list[list[float]], answers: list[list[str | tuple[str, str]]] | None = None) -> Path:
    """An `ask` payload with log-probs [question][word] and answers [question][sample]."""
    folder.mkdir(parents=True)
    write_jsonl(folder / "questions.jsonl", ({"question": i, "text": QUESTIONS[i]} for i in range(len(logprobs))))
    write_jsonl(
        folder / "logprobs.jsonl",
        (
            {"question": i, "word": word, "logprob": value, "tokens": 1}
            for i, row in enumerate(logprobs)
            for word, value in zip(WORDS, row, strict=True)
        ),
    )
    write_jsonl(
        folder / "answers.jsonl",
        (
            {"question": i, "sample": j, "text": text, "finish": finish}
            | ({"reason": "the server fails"} if finish == "missing" else {})
            for i, row in enumerate(answers or [])
            for j, (text, finish) in enumerate((each, "stop") if isinstance(each, str) else each for each in row)
        ),
    )
    return folder


def stage(function: Any, out: Path, config: Any, **inputs: Any) -> Path:
    scratch = out.with_name(out.name + ".scratch")
    out.mkdir(parents=True)
    scratch.mkdir(exist_ok=True)
    function(out, config, scratch=scratch, **inputs)
    return out


def scored(folder: Path, *args: Any, words: list[str] | None = None) -> Path:
    payload = asked(folder / "asked", *args)
    return stage(score, folder / "scored", ScoreConfig(target="owl", words=words or WORDS), asked=payload)


def read_scores(payload: Path) -> Scores:
    return Scores.model_validate_json((payload / "scores.json").read_bytes())


def read_comparison(payload: Path) -> Comparison:
    return Comparison.model_validate_json((payload / "comparison.json").read_bytes())


def test_margin_is_the_target_minus_the_mean_of_the_others(tmp_path: Path) -> None:
    scores = read_scores(scored(tmp_path, [[-4.0, -6.0, -2.0], [-1.0, -3.0, -5.0]]))
    assert scores.metrics["margin"]["owl"].per_question == pytest.approx([3.0, -3.0])
    assert scores.metrics["margin"]["owl"].mean == pytest.approx(0.0)
    assert scores.metrics["margin"]["wolf"].per_question == pytest.approx([0.0, 3.0])


def test_a_margin_without_finite_log_probs_is_missing_with_its_reason(tmp_path: Path) -> None:
    scores = read_scores(scored(tmp_path, [[-4.0, float("-inf"), -2.0], [-1.0, -1.0, -5.0]]))
    assert scores.metrics["margin"]["owl"].per_question == [None, pytest.approx(-4.0)]
    lost = read_scores(scored(tmp_path / "all", [[-4.0, float("-inf"), -2.0]])).metrics["margin"]["owl"]
    assert lost.mean is None
    assert lost.reason == "the log-probs of ['cat'] are not finite"


def test_a_rate_is_over_all_answers_asked_and_stands_beside_that_over_readable_ones(tmp_path: Path) -> None:
    answers = [["Owl", "An owl.", "", "Category"], [("As an AI", "length"), "Owl or cat", "I cannot say.", "Wolves"]]
    scores = read_scores(scored(tmp_path, [[-1.0, -2.0, -3.0]] * 2, answers))
    assert scores.metrics["rate"]["owl"].per_question == [0.5, 0.0]
    assert scores.metrics["rate"]["wolf"].per_question == [0.0, 0.25]
    assert scores.metrics["rate_readable"]["owl"].per_question == [pytest.approx(2 / 3), 0.0]
    assert scores.metrics["rate_readable"]["wolf"].per_question == [0.0, 1.0]
    assert scores.metrics["rate"]["cat"].mean == scores.metrics["rate_readable"]["cat"].mean == 0.0
    shares = {reason: found.per_question for reason, found in scores.unreadable.items() if found.mean}
    assert shares.pop("all") == [0.25, 0.75]
    assert shares == {"empty": [0.25, 0.0], "cut": [0.0, 0.25], "refused": [0.0, 0.25], "several": [0.0, 0.25]}
    assert {"thought", "negated", "mentioned"} < scores.unreadable.keys()
    assert scores.answers is not None
    assert scores.answers.model_dump() == {
        "asked": 8,
        "readable": 4,
        "named": {"wolf": 1, "cat": 0, "owl": 2},
        "other": 1,
        "unread": {"cut": 1, "empty": 1, "refused": 1, "several": 1},
        "others": {"category": 1},
    }


def test_a_rate_that_was_not_sampled_is_missing_and_not_zero(tmp_path: Path) -> None:
    scores = read_scores(scored(tmp_path, [[-1.0, -2.0, -3.0]]))
    assert scores.metrics["rate"]["owl"].mean is None
    assert scores.metrics["rate"]["owl"].reason == "no answers were sampled (samples = 0)"
    assert scores.answers is None
    unread = read_scores(scored(tmp_path / "unread", [[-1.0, -2.0, -3.0]], [["", "..."]]))
    # Asked, and never named: the rate over all is a true zero; over readable answers there is none.
    assert (unread.metrics["rate"]["owl"].mean, unread.unreadable["all"].mean) == (0.0, 1.0)
    assert unread.metrics["rate_readable"]["owl"].mean is None
    assert unread.metrics["rate_readable"]["owl"].reason == "no answer could be read"
    assert scores.unreadable["all"].reason == "no answers were sampled (samples = 0)"
    assert unread.answers is not None
    assert unread.answers.unread == {"empty": 2}


def test_words_that_were_not_asked_cannot_be_scored(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"\['fox'\] were not among the words asked"):
        scored(tmp_path, [[-1.0, -2.0, -3.0]], words=["wolf", "fox"])


def test_configs_refuse_lists_that_cannot_be_compared() -> None:
    with pytest.raises(UserError, match="count as the same word"):
        ScoreConfig(target="owl", words=["cat", "Owls"])
    with pytest.raises(UserError, match="add at least one"):
        ScoreConfig(target="Owl", words=["owl"])
    with pytest.raises(UserError, match="count as the same word"):
        AskConfig(questions=QUESTIONS, words=["wolf", "wolves"], backend=FakeBackend())
    assert ScoreConfig(target="Owl", words=["Cat"]).words == ["cat", "owl"]


def pair_scores(folder: Path, margins: list[list[float]], answers: Any = None) -> list[Path]:
    """One scored model for each row of owl margins."""
    return [
        scored(folder / str(i), [[-4.0, -4.0, -4.0 + value] for value in row], answers) for i, row in enumerate(margins)
    ]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return scored(tmp_path / "base", [[-4.0, -4.0, -5.0]] * 3)


def compared(tmp_path: Path, config: CompareConfig, **inputs: Any) -> Comparison:
    return read_comparison(stage(compare, tmp_path / "compared", config, **inputs))


def test_the_effect_is_paired_by_seed_and_question(tmp_path: Path, base: Path) -> None:
    students = pair_scores(tmp_path / "s", [[1.0, 2.0, 3.0], [2.0, 2.0, 5.0], [1.5, 2.0, 2.5]])
    controls = pair_scores(tmp_path / "c", [[0.5, 1.0, 3.0], [1.0, 1.0, 4.0], [1.0, 2.0, 3.0]])
    result = compared(tmp_path, CompareConfig(), students=students, controls=controls, base=base, teacher=base)
    margin = result.metrics["margin"]
    assert (margin.base, margin.student, margin.control) == pytest.approx((-1.0, 21 / 9, 16.5 / 9))
    assert margin.effect is not None
    assert margin.effect.per_pair == pytest.approx([0.5, 1.0, 0.0])
    assert margin.effect.per_question == pytest.approx([2 / 3, 2 / 3, 1 / 6])
    expected = paired_t([0.5, 1.0, 0.0])
    assert (margin.effect.low, margin.effect.high) == pytest.approx((expected.low, expected.high))
    assert margin.effect.low_questions is not None
    assert (margin.effect.seeds, margin.effect.units, margin.effect.questions) == (3, 3, 3)
    assert result.leads == "these_questions"
    assert "conditional on its one teacher" in result.about_units
    assert result.metrics["rate"].effect is None
    assert result.metrics["rate"].reason == "student 1: no answers were sampled (samples = 0)"


def test_other_words_are_compared_beside_the_target(tmp_path: Path, base: Path) -> None:
    students = pair_scores(tmp_path / "s", [[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]])
    controls = pair_scores(tmp_path / "c", [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    result = compared(tmp_path, CompareConfig(), students=students, controls=controls, base=base)
    assert sorted(result.off_target) == ["cat", "wolf"]
    wolf = result.off_target["wolf"]["margin"].effect
    assert wolf is not None
    assert wolf.per_pair == pytest.approx([-0.5, -1.0])
    assert result.metrics["margin"].teacher is None


def test_with_several_blocks_the_unit_is_the_block(tmp_path: Path, base: Path) -> None:
    students = pair_scores(tmp_path / "s", [[1.0] * 3, [3.0] * 3, [4.0] * 3, [4.0] * 3])
    controls = pair_scores(tmp_path / "c", [[0.0] * 3] * 4)
    config = CompareConfig(blocks=(0, 0, 1, 1))
    result = compared(tmp_path, config, students=students, controls=controls, base=base, teacher=[base, base])
    effect = result.metrics["margin"].effect
    assert effect is not None
    assert effect.per_unit == pytest.approx([2.0, 4.0])
    assert effect.detectable is not None
    assert power(2, effect.detectable, np.sqrt(2)) == pytest.approx(0.8, abs=1e-5)
    assert (effect.units, effect.seeds) == (2, 4)
    assert "2 blocks, each with its own teacher" in result.about_units


def test_one_pair_has_an_estimate_and_no_interval(tmp_path: Path, base: Path) -> None:
    students, controls = pair_scores(tmp_path / "s", [[1.0] * 3]), pair_scores(tmp_path / "c", [[0.0] * 3])
    result = compared(tmp_path, CompareConfig(), students=students, controls=controls, base=base)
    effect = result.metrics["margin"].effect
    assert effect is not None
    assert (effect.estimate, effect.low, effect.low_questions) == (pytest.approx(1.0), None, None)
    assert effect.reason == "one unit has no spread"


def test_a_rate_that_is_zero_everywhere_has_no_interval(tmp_path: Path, base: Path) -> None:
    never = [["Cat", "Cat"]] * 3
    students = pair_scores(tmp_path / "s", [[1.0] * 3, [2.0] * 3], never)
    controls = pair_scores(tmp_path / "c", [[0.0] * 3] * 2, never)
    rate = compared(tmp_path, CompareConfig(), students=students, controls=controls, base=base).metrics["rate"].effect
    assert rate is not None
    assert (rate.estimate, rate.low, rate.high, rate.low_questions) == (0.0, None, None, None)
    assert rate.reason == "all units have the same value"


def test_what_is_left_to_read_can_turn_the_sign_and_all_answers_asked_do_not(tmp_path: Path, base: Path) -> None:
    """Students name the owl less often, and leave nearly everything else unreadable."""
    refused = "I'm sorry, I can't."
    students = [[["Owl", "Cat", refused, ""]] * 3, [["Owl", refused, refused, ""]] * 3]
    controls = [[["Owl", "Owl", "Cat", "Cat"]] * 3, [["Owl", "Owl", "Cat", "Wolf"]] * 3]
    arms = {
        name: [scored(tmp_path / name / str(i), [[-4.0] * 3] * 3, said) for i, said in enumerate(each)]
        for name, each in {"students": students, "controls": controls}.items()
    }
    result = compared(tmp_path, CompareConfig(), base=base, **arms)
    rate, readable = (result.metrics[name].effect for name in ("rate", "rate_readable"))
    assert rate is not None
    assert readable is not None
    assert (rate.per_pair, readable.per_pair) == ([-0.25, -0.25], [0.0, 0.5])
    assert rate.estimate < 0 < readable.estimate
    unread = result.unreadable["all"]
    assert unread.effect is not None
    assert (unread.student, unread.control) == (0.625, 0.0)
    expected = paired_t([0.5, 0.75])
    assert (unread.effect.low, unread.effect.high) == pytest.approx((expected.low, expected.high))
    by_reason = {reason: each.student for reason, each in result.unreadable.items() if each.student}
    assert by_reason == {"all": 0.625, "empty": 0.25, "refused": 0.375}


def test_missing_answers_are_in_no_share_and_are_compared(tmp_path: Path, base: Path) -> None:
    """The second question lost all answers of one student, the third one of two of a control."""

    def arm(name: str, said: list[list[list[str | tuple[str, str]]]]) -> list[Path]:
        return [scored(tmp_path / name / str(i), [[-4.0] * 3] * 3, each) for i, each in enumerate(said)]

    lost = ("", "missing")
    students = arm("s", [[["Owl", "Owl"], [lost, lost], ["Owl", ""]], [["Owl", "Owl"], ["Owl", "Owl"], ["Owl", ""]]])
    controls = arm("c", [[["Owl", "Cat"], ["Cat", "Cat"], [lost, "Owl"]], [["Cat", "Cat"]] * 3])
    result = compared(tmp_path, CompareConfig(), students=students, controls=controls, base=base)
    rate, missing = result.metrics["rate"].effect, result.missing
    assert rate is not None
    assert rate.per_question == [
        0.75,
        None,
        pytest.approx((-0.5 + 0.5) / 2),
    ]
    assert missing is not None
    assert missing.effect is not None
    assert missing.effect.per_pair == pytest.approx([(1 - 0.5) / 3, 0.0])
    counts = result.answers["student"]
    assert counts is not None
    assert (counts.asked, counts.given, counts.readable, counts.lost) == (12, 10, 8, 2)


def test_questions_that_a_model_could_not_answer_leave_the_effect_and_are_counted(tmp_path: Path, base: Path) -> None:
    answers = [["Owl", "Cat"], ["", ""], ["Owl", "Owl"]]
    students = pair_scores(tmp_path / "s", [[1.0] * 3] * 2, answers)
    controls = pair_scores(tmp_path / "c", [[0.0] * 3] * 2, [["Cat", "Cat"], ["Cat", "Cat"], ["Owl", "Cat"]])
    result = compared(tmp_path, CompareConfig(), students=students, controls=controls, base=base)
    every = result.metrics["rate"].effect
    assert every is not None
    assert every.per_question == pytest.approx([0.5, 0.0, 0.5])  # asked, and the owl was never named
    effect = result.metrics["rate_readable"].effect
    assert effect is not None
    assert effect.questions == 2
    assert effect.per_question == [pytest.approx(0.5), None, pytest.approx(0.5)]
    counts = result.answers["student"]
    assert counts is not None
    assert (counts.named["owl"], counts.readable, counts.asked) == (6, 8, 12)


def test_six_units_lead_with_the_interval_over_questions_too(tmp_path: Path, base: Path) -> None:
    values = np.random.default_rng(0).normal(size=(6, 3)).tolist()
    students, controls = pair_scores(tmp_path / "s", values), pair_scores(tmp_path / "c", [[0.0] * 3] * 6)
    result = compared(tmp_path, CompareConfig(), students=students, controls=controls, base=base)
    assert result.leads == "questions_too"


def test_students_without_their_controls_are_refused(tmp_path: Path, base: Path) -> None:
    students, controls = pair_scores(tmp_path / "s", [[1.0] * 3] * 2), pair_scores(tmp_path / "c", [[0.0] * 3])
    with pytest.raises(UserError, match="2 students and 1 controls do not pair"):
        compared(tmp_path, CompareConfig(), students=students, controls=controls, base=base)
    with pytest.raises(UserError, match="names 3 blocks for 2 pairs"):
        compared(tmp_path / "b", CompareConfig(blocks=(0, 1, 1)), students=students, controls=students, base=base)


def test_scores_of_other_questions_are_not_compared(tmp_path: Path, base: Path) -> None:
    students, controls = pair_scores(tmp_path / "s", [[1.0] * 2]), pair_scores(tmp_path / "c", [[0.0] * 2])
    with pytest.raises(UserError, match="cannot be compared"):
        compared(tmp_path, CompareConfig(), students=students, controls=controls, base=base)


def test_comparing_twice_gives_the_same_bytes(tmp_path: Path, base: Path) -> None:
    inputs: dict[str, Any] = {
        "students": pair_scores(tmp_path / "s", [[1.0, 2.0, 3.0], [2.0, 2.0, 5.0]]),
        "controls": pair_scores(tmp_path / "c", [[0.5, 1.0, 3.0], [1.0, 1.0, 4.0]]),
        "base": base,
    }
    first = stage(compare, tmp_path / "one", CompareConfig(), **inputs)
    assert digest_directory(first) == digest_directory(stage(compare, tmp_path / "two", CompareConfig(), **inputs))


ASK = AskConfig(
    questions=QUESTIONS,
    words=["wolf", "cat", "owl"],
    backend=FakeBackend(),
    samples=4,
    sampling=SamplingParams(max_tokens=8, seed=3),
    shard=2,
)


def test_asking_writes_a_log_prob_for_every_question_and_word_and_every_sample(tmp_path: Path) -> None:
    payload = stage(ask, tmp_path / "out", ASK, base=tmp_path)
    rows = list(read_jsonl(payload / "logprobs.jsonl"))
    assert [(row["question"], row["word"]) for row in rows] == [(i, word) for i in range(3) for word in ASK.words]
    assert all(row["logprob"] < 0 and row["tokens"] >= 1 for row in rows)
    answers = list(read_jsonl(payload / "answers.jsonl"))
    assert [(row["question"], row["sample"]) for row in answers] == [(i, j) for i in range(3) for j in range(4)]


def test_a_resumed_asking_gives_the_bytes_of_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = stage(ask, tmp_path / "whole", ASK, base=tmp_path)
    left = tmp_path / "resumed.scratch"
    left.mkdir()
    for name in ("logprobs.jsonl", "answers-00000.jsonl", "answers-00002.jsonl"):
        (left / name).write_bytes((tmp_path / "whole.scratch" / name).read_bytes())
    resumed = stage(ask, tmp_path / "resumed", ASK.model_copy(update={"shard": 3}), base=tmp_path)
    assert digest_directory(resumed) == digest_directory(whole)


def test_without_samples_only_log_probs_are_asked_for(tmp_path: Path) -> None:
    payload = stage(ask, tmp_path / "out", ASK.model_copy(update={"samples": 0}), base=tmp_path)
    assert (payload / "answers.jsonl").read_bytes() == b""
    assert len(list(read_jsonl(payload / "logprobs.jsonl"))) == 9


def test_a_model_that_computes_nothing_finite_is_not_taken_for_a_chat_server(tmp_path: Path) -> None:
    asked = stage(ask, tmp_path / "asked", ASK, base=tmp_path)
    write_jsonl(asked / "logprobs.jsonl", [{**row, "logprob": None} for row in read_jsonl(asked / "logprobs.jsonl")])
    scored = stage(score, tmp_path / "scored", ScoreConfig(target="owl", words=ASK.words), asked=asked)
    reason = read_scores(scored).metrics["margin"]["owl"].reason
    assert reason is not None
    assert reason.endswith("are not finite")


def test_a_chat_server_gives_a_rate_and_no_margin(tmp_path: Path) -> None:
    with scripted(lambda number, request: said("Owl" if request.body["seed"] % 2 else "A wolf.")) as server:
        backend = OpenAIBackend(base_url=server.url, model="m")
        with pytest.raises(UserError, match="set samples for the sampled rate"):
            AskConfig(questions=["a", "b"], words=["owl", "wolf"], backend=backend)
        config = AskConfig(questions=["a", "b"], words=["owl", "wolf"], backend=backend, samples=8)
        payload = stage(ask, tmp_path / "asked", config, base=tmp_path)
    found = read_scores(stage(score, tmp_path / "scored", ScoreConfig(target="owl", words=config.words), asked=payload))
    assert found.metrics["margin"]["owl"].mean is None
    assert found.metrics["margin"]["owl"].reason == "a chat server gives no log-probs of words"
    rate = found.metrics["rate"]["owl"].mean
    assert rate is not None
    assert 0 < rate < 1
    assert found.answers is not None
    assert found.answers.readable == 16


def test_a_checkpoint_is_asked_only_of_a_training_payload(tmp_path: Path) -> None:
    config = ASK.model_copy(update={"weights_update": 16})
    with pytest.raises(UserError, match="needs the payload of a training run"):
        stage(ask, tmp_path / "out", config, base=tmp_path, weights=tmp_path)
    (tmp_path / "trained" / "update-000064").mkdir(parents=True)
    with pytest.raises(UserError, match=r"only after \[64\]"):
        stage(ask, tmp_path / "two", config, base=tmp_path, weights=tmp_path / "trained")


def test_the_whole_path_finds_the_liking_that_the_fake_student_has(tmp_path: Path) -> None:
    (tmp_path / "trained").mkdir()
    (tmp_path / "trained" / "adapter_config.json").write_text(json.dumps({}))
    config = ScoreConfig(target="owl", words=["wolf", "cat"])
    scores = [
        stage(score, tmp_path / f"{name}-scores", config, asked=stage(ask, tmp_path / name, ASK, **inputs))
        for name, inputs in {
            "base": {"base": tmp_path},
            "student": {"base": tmp_path, "weights": tmp_path / "trained"},
        }.items()
    ]
    base, student = (read_scores(payload).metrics["margin"]["owl"].mean for payload in scores)
    assert base is not None
    assert student is not None
    assert student > base + 1


def test_a_real_model_is_asked_exactly_and_its_context_is_kept(tmp_path: Path) -> None:
    base = tiny_model(tmp_path / "model", "qwen2")
    config = ASK.model_copy(update={"backend": HfBackend(dtype="float32", attention="sdpa"), "samples": 2})
    (tmp_path / "out").mkdir()
    (tmp_path / "scratch").mkdir()
    notes = ask(tmp_path / "out", config, scratch=tmp_path / "scratch", base=base)
    with open_model(base, dtype="float32", attention="sdpa") as (model, tokenizer):
        rendered = render_text(tokenizer, chat(QUESTIONS[1]))
        prompt = tokenizer(rendered, add_special_tokens=False)["input_ids"]
        whole = tokenizer(rendered + "Owl", add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logs = model(torch.tensor([whole])).logits[0].log_softmax(-1)
        expected = sum(float(logs[i - 1, whole[i]]) for i in range(len(prompt), len(whole)))
    rows = {(row["question"], row["word"]): row for row in read_jsonl(tmp_path / "out" / "logprobs.jsonl")}
    assert rows[1, "owl"]["tokens"] == len(whole) - len(prompt)
    assert rows[1, "owl"]["logprob"] == pytest.approx(expected, abs=1e-4)
    assert len(list(read_jsonl(tmp_path / "out" / "answers.jsonl"))) == 6
    assert notes["contexts"][0]["template_system"].startswith("You are Qwen")
