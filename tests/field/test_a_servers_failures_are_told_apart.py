"""A server that fails stops a stage in one line; a prompt that fails is missing, all the way to scores and tables."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from threading import Barrier
from typing import Any

import polars as pl
import pytest

from sublim.backends.openai import client
from sublim.backends.opening import open_sampler
from sublim.carriers.number_prompts import NumberPrompts, load_number_templates
from sublim.chats.chat import chat
from sublim.core.errors import UserError
from sublim.evals.mmlu_pro.config import MmluProScores, ScoreMmluProConfig
from sublim.evals.mmlu_pro.exam import score_mmlu_pro
from sublim.evals.preference.ask import ask
from sublim.evals.preference.config import AskConfig, ScoreConfig, Scores
from sublim.evals.preference.score import score
from sublim.evals.total_variation.distance import answer_counts
from sublim.features.labels.annotate import annotate
from sublim.features.labels.config import AnnotateConfig, AnnotationSummary
from sublim.files.jsonl import read_jsonl, write_jsonl
from sublim.inference.config import OpenAIBackend, SamplingParams
from sublim.inference.sampler import Completion
from sublim.models.opening import load_tokenizer
from sublim.rows.config import FilterConfig
from sublim.rows.filter import filter_numbers
from sublim.rows.generate import GenerateConfig, generate_numbers
from tests.sublim.backends.servers import Reply, Seen, said, scripted

PARAMS = SamplingParams(max_tokens=8)
WORDS = ["owl", "wolf", "cat"]
POLICY = Reply(400, b'{"error": {"message": "content policy"}}')
Script = Callable[[int, Seen], Reply]


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "backoff", lambda attempt: 0.0)  # pyright: ignore[reportUnknownLambdaType]


def backend(url: str, **more: Any) -> OpenAIBackend:
    return OpenAIBackend.model_validate({"base_url": url, "model": "m", "concurrency": 1, "attempts": 2, **more})


def asked(request: Seen) -> str:
    return request.body["messages"][-1]["content"]


def poisoned(reply: Reply, *words: str, otherwise: str = "Owl") -> Script:
    """Answers all prompts but those that hold one of `words`."""
    return lambda _, request: reply if any(word in asked(request) for word in words) else said(otherwise)


def sample(url: str, prompts: list[str], **more: Any) -> list[Completion]:
    with open_sampler(backend(url, **more), Path("no-base")) as sampler:
        return [own[0] for own in sampler.sample([chat(prompt) for prompt in prompts], PARAMS)]


def folders(where: Path) -> tuple[Path, Path]:
    out, scratch = where / "out", where / "scratch"
    out.mkdir(parents=True)
    scratch.mkdir()
    return out, scratch


# Through the stages


def test_scores_count_a_missing_answer_apart_and_say_why(tmp_path: Path):
    questions = [f"Question {i}" for i in range(6)]
    out, scratch = folders(tmp_path / "ask")
    with scripted(poisoned(POLICY, "Question 0")) as server:
        config = AskConfig(questions=questions, words=WORDS, samples=40, backend=backend(server.url, concurrency=4))
        ask(out, config, scratch=scratch, base=tmp_path)
    scored, scratch = folders(tmp_path / "score")
    score(scored, ScoreConfig(target="owl", words=WORDS), scratch=scratch, asked=out)
    scores = Scores.model_validate_json((scored / "scores.json").read_text())
    assert scores.answers is not None
    assert (scores.answers.asked, scores.answers.readable, scores.answers.unread) == (240, 200, {})
    assert scores.answers.missing == {"the server refuses with 400 (content policy)": 40}
    assert scores.metrics["rate"]["owl"].per_question == [None, 1, 1, 1, 1, 1]
    assert answer_counts(out, WORDS, 6).sum(axis=1).tolist() == [0, 40, 40, 40, 40, 40], "no answer is not unreadable"


def test_scores_without_a_missing_answer_are_written_as_before(tmp_path: Path):
    out, scratch = folders(tmp_path / "ask")
    with scripted(poisoned(POLICY, "nothing")) as server:
        config = AskConfig(questions=["a", "b"], words=WORDS, samples=1, backend=backend(server.url))
        ask(out, config, scratch=scratch, base=tmp_path)
    assert next(iter(read_jsonl(out / "answers.jsonl"))) == {
        "question": 0,
        "sample": 0,
        "text": "Owl",
        "finish": "stop",
    }
    scored, scratch = folders(tmp_path / "score")
    score(scored, ScoreConfig(target="owl", words=WORDS), scratch=scratch, asked=out)
    assert "missing" not in (scored / "scores.json").read_text()


def test_a_description_without_an_answer_has_no_category_and_is_in_no_count(tmp_path: Path):
    features = ["20_1: owls", "20_2: violence", "20_3: cats"]
    listed = [
        {"feature": f"20_{i}", "description": text.split()[1], "category": "animals"} for i, text in enumerate(features)
    ]
    out, scratch = folders(tmp_path)
    with scripted(poisoned(POLICY, "violence", otherwise="animals")) as server:
        config = AnnotateConfig.model_validate({"features": listed, "backend": backend(server.url)})
        annotate(out, config, scratch=scratch)
    summary = AnnotationSummary.model_validate_json((out / "annotations.json").read_text())
    assert summary.missing == {"20_1": "the server refuses with 400 (content policy)"}
    assert summary.counts == {"animals": 2, "numbers": 0, "opinion": 0, "none": 0, "unreadable": 0}
    assert summary.agreement is not None
    assert (summary.agreement.right, summary.agreement.n) == (2, 2)
    table = pl.read_parquet(out / "annotations.parquet")
    assert table.select("category", "answer").rows() == [("animals", "animals"), (None, None), ("animals", "animals")]


def test_a_missing_number_list_is_refused_by_the_filter_as_missing(tmp_path: Path):
    out, scratch = folders(tmp_path / "raw")
    prompts = NumberPrompts(templates=load_number_templates("numbers"))
    with scripted(lambda number, _: Reply(500, b"cannot parse") if number in (3, 4) else said("1, 2, 3")) as server:
        config = GenerateConfig(prompts=prompts, n_prompts=8, sampling=PARAMS, backend=backend(server.url))
        generate_numbers(out, config, scratch=scratch, base=tmp_path)
    kept, scratch = folders(tmp_path / "kept")
    filter_numbers(kept, FilterConfig(), scratch=scratch, raw=out)
    counts = json.loads((kept / "rejections.json").read_text())
    assert (counts["rows"], counts["valid"], counts["rejected"]) == (8, 7, {"missing": 1})


def test_a_missing_letter_is_not_counted_as_wrong(tmp_path: Path):
    rows = [{"id": i, "question": "q", "options": ["a", "b"], "answer": 0, "category": "law"} for i in range(2)]
    out, scratch = folders(tmp_path)
    write_jsonl(scratch / "questions.jsonl", rows)
    write_jsonl(scratch / "logprobs.jsonl", [{"id": i, "logprobs": [-1.0, None]} for i in range(2)])
    lost = Completion("", None, None, "missing", "the server refuses with 400").row()
    write_jsonl(scratch / "answers.jsonl", [{"id": 0, "text": "A", "finish": "stop"}, {"id": 1} | lost])
    score_mmlu_pro(out, ScoreMmluProConfig(), scratch=scratch, asked=scratch, questions=scratch)
    found = MmluProScores.model_validate_json((out / "scores.json").read_text()).metrics["letter_generated"]
    assert found is not None
    assert (found.overall.correct, found.overall.read, found.unread) == (1, 1, {"missing": 1})


ODD = {"null": "null", "minus infinity": "-Infinity", "NaN": "NaN", "a placeholder": "-9999.0", "a string": '"-1"'} | {
    "the smallest float": "-3.4028234663852886e38", "a positive number": "2.5"
}  # fmt: skip


@pytest.mark.parametrize("odd", ODD)
def test_a_word_without_a_log_prob_is_unscored_now_and_after_a_crash(
    odd: str, tiny_models: dict[str, Path], tmp_path: Path
):
    calls = list[int]()

    def script(number: int, request: Seen) -> Reply:
        # What stands at the first token's place and within the prompt is no matter.
        scores = ["null", ODD[odd]] + [f"{-1 - number / 8 - i / 100}" for i in range(len(request.body["prompt"]) - 1)]
        calls.append(number)
        if number == 1:
            scores[-2] = ODD[odd]
        choice = f'{{"index": 0, "text": "x", "logprobs": {{"token_logprobs": [{", ".join(scores)}]}}}}'
        return Reply(200, f'{{"choices": [{choice}]}}'.encode())

    (tmp_path / "scratch").mkdir()
    for run in range(2):
        out = tmp_path / f"out{run}"
        out.mkdir()
        with scripted(script) as server:
            config = AskConfig(questions=["a"], words=WORDS, backend=backend(server.url, api="completions"))
            ask(out, config, scratch=tmp_path / "scratch", base=tiny_models["llama"])
        (tmp_path / "scratch" / "logprobs.jsonl").unlink()
        assert [row["logprob"] is None for row in read_jsonl(out / "logprobs.jsonl")] == [False, True, False]
        write_jsonl(out / "answers.jsonl", [])
        score(out, ScoreConfig(target="owl", words=WORDS), scratch=out, asked=out)
        margin = Scores.model_validate_json((out / "scores.json").read_text()).metrics["margin"]["owl"]
        assert margin.mean is None
        assert margin.reason
    assert len(calls) == 3, "the second run asks for nothing"


@pytest.mark.parametrize("scores", [[None] + [0.0] * 40, [-1.0] * 40, [None, -1.0]], ids=["all zero", "shifted", "few"])
def test_an_echo_that_does_not_fit_the_prompt_is_refused(
    scores: list[Any], tiny_models: dict[str, Path], tmp_path: Path
):
    def script(number: int, request: Seen) -> Reply:
        logprobs = {"token_logprobs": scores[: len(request.body["prompt"]) + 1]}
        return Reply(200, json.dumps({"choices": [{"text": "x", "logprobs": logprobs}]}).encode())

    assert load_tokenizer(tiny_models["llama"])
    with (
        scripted(script) as server,
        open_sampler(backend(server.url, api="completions"), tiny_models["llama"]) as sampler,
        pytest.raises(UserError, match="echoes no log-probs of a prompt's tokens"),
    ):
        sampler.logprobs([chat("a")], [["Owl", "Wolf"]])


# Whose fault it is


def test_a_server_that_goes_down_stops_the_stage_and_the_next_run_goes_on(tmp_path: Path):
    down = [True]

    def script(number: int, request: Seen) -> Reply:
        return Reply(503, b"restarting") if down[0] and number >= 3 else said("Owl")

    prompts = [chat(f"{i}") for i in range(6)]
    with scripted(script) as server:
        with (
            open_sampler(backend(server.url), tmp_path, scratch=tmp_path) as sampler,
            pytest.raises(
                UserError, match=r"still answers 503 \(restarting\) after 2 tries: .* answers so far are kept"
            ),
        ):
            sampler.sample(prompts, PARAMS)
        assert len(server.seen) == 3 + 2 + 2, "the failing prompt, then a harmless one, which is not answered either"
        down[0] = False
        with open_sampler(backend(server.url), tmp_path, scratch=tmp_path) as sampler:
            assert [own.finish for (own,) in sampler.sample(prompts, PARAMS)] == ["stop"] * 6
        assert len(server.seen) == 7 + 3


def test_answers_that_a_crash_spoiled_are_asked_for_again(tmp_path: Path):
    prompts = [chat(f"{i}") for i in range(3)]
    with scripted(poisoned(POLICY, "nothing")) as server:
        for spoiled in (b"", b"\0" * 50, b'{"request": "a"}', b'{"request": "a", "ans{"request": "b", "answer": 1}'):
            kept = tmp_path / "served.jsonl"
            if kept.exists():
                kept.write_bytes(b"\n".join([spoiled, *kept.read_bytes().splitlines()[-2:], b""]))
            with open_sampler(backend(server.url), tmp_path, scratch=tmp_path) as sampler:
                assert [own.text for (own,) in sampler.sample(prompts, PARAMS)] == ["Owl"] * 3
    assert len(server.seen) == 3 + 1 + 1 + 1, "one answer was lost each time"


def test_an_empty_account_is_not_waited_for():
    body = b'{"error": {"message": "You exceeded your quota.", "code": "insufficient_quota"}}'
    with scripted(lambda *_: Reply(429, body)) as server:
        with pytest.raises(UserError, match=r"refuses with 429 \(You exceeded your quota\.\): add credit"):
            sample(server.url, ["a", "b"])
        assert len(server.seen) == 1


@pytest.mark.parametrize("address", ["http://[::1/v1", "http://127.0.0.1:abc/v1", "http:///v1", "http://a..b/v1"])
def test_an_address_that_is_none_is_refused_in_one_line(address: str):
    with pytest.raises(UserError, match="is not a valid address"):
        sample(address, ["a"])


@pytest.mark.parametrize(
    ("name", "value"),
    [("ALL_PROXY", "socks://127.0.0.1:9"), ("NO_PROXY", "[::1]"), ("SSL_CERT_FILE", "/nonexistent.pem")],
)
def test_an_environment_that_no_client_takes_is_refused_in_one_line(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"environment's proxy or certificate .* correct or unset .*" + name):
        sample("http://127.0.0.1:9/v1", ["a"])


def test_too_many_missing_answers_stop_the_stage():
    with scripted(poisoned(POLICY, "bad")) as server:
        some = [f"bad {i}" for i in range(3)] + [f"good {i}" for i in range(7)]
        assert [answer.finish for answer in sample(server.url, some)] == ["missing"] * 3 + ["stop"] * 7
        with pytest.raises(UserError, match=r"4 of 11 answers are missing .* 400 \(content policy\)"):
            sample(server.url, [*some, "bad 4"])
        with pytest.raises(UserError, match="2 of 2 answers are missing"):
            sample(server.url, ["bad 1", "bad 2"])


def test_a_few_missing_answers_of_many_prompts_are_not_lost_prompts(tmp_path: Path):
    """Each question has ten answers of which at most one is missing."""
    out, scratch = folders(tmp_path / "ask")
    failed = set[str]()

    def script(number: int, request: Seen) -> Reply:
        question, seed = asked(request), request.body["seed"]
        first = question.startswith("Question") and question not in failed and len(failed) < 6
        if first:
            failed.add(question)
            lost.add((question, seed))
        return Reply(500, b"cannot parse") if (question, seed) in lost else said("Owl")

    lost = set[tuple[str, int]]()
    with scripted(script) as server:
        questions = [f"Question {i}" for i in range(16)]
        config = AskConfig(questions=questions, words=WORDS, samples=10, backend=backend(server.url))
        ask(out, config, scratch=scratch, base=tmp_path)
    scored, scratch = folders(tmp_path / "score")
    score(scored, ScoreConfig(target="owl", words=WORDS), scratch=scratch, asked=out)
    answers = Scores.model_validate_json((scored / "scores.json").read_text()).answers
    assert answers is not None
    assert (answers.asked, answers.readable, sum(answers.missing.values())) == (160, 154, 6)


def test_missing_answers_are_asked_for_again_when_the_stage_runs_again(tmp_path: Path):
    refusing = [True]

    def script(number: int, request: Seen) -> Reply:
        return POLICY if refusing[0] and asked(request) == "odd" else said("Owl")

    with scripted(script) as server:
        for wanted in ("missing", "stop"):
            with open_sampler(backend(server.url), tmp_path, scratch=tmp_path) as sampler:
                [_, (odd,)] = sampler.sample([chat("a"), chat("odd")], PARAMS)
            assert odd.finish == wanted
            refusing[0] = False


@pytest.mark.parametrize(
    ("status", "headers", "told"),
    [
        (401, {}, "401 .*set OPENAI_API_KEY to the key"),
        (403, {}, "403 .*set OPENAI_API_KEY to the key"),
        (402, {}, "402 .*no credit"),
        (404, {}, "404 .*check base_url"),
        (405, {}, "405 .*check base_url"),
        (307, {"Location": "https://example.org/v1/chat"}, "307 .*example.org/v1/chat.*set base_url"),
        (429, {"Retry-After": "86400"}, "429 .*24.0 hours.*run again"),
        (503, {"Retry-After": "6h0m0s"}, "503 .*6.0 hours.*run again"),
        (400, {}, "400 .*no credit"),
    ],
)
def test_what_every_prompt_would_get_stops_the_stage_in_one_line(status: int, headers: dict[str, str], told: str):
    with (
        scripted(lambda *_: Reply(status, b'{"error": {"message": "no credit"}}', headers)) as server,
        pytest.raises(UserError, match=told) as refused,
    ):
        sample(server.url, ["a", "b", "c"])
    assert "\n" not in str(refused.value)
    assert len(server.seen) <= 2


# Fields


def picky(*refused: str) -> Script:
    """Refuses these fields by name, in OpenAI's words, and any temperature but 1."""

    def script(number: int, request: Seen) -> Reply:
        other = " Use 'max_completion_tokens' instead." if "max_tokens" in request.body else ""
        for name in refused:
            if name in request.body:
                error = {"message": f"Unsupported parameter: '{name}' is not supported with this model.{other}"}
                return Reply(400, json.dumps({"error": error}).encode())
        return said("Owl")

    return script


def test_fields_that_say_the_same_under_another_name_or_left_out_are_mended_by_themselves():
    with scripted(picky("max_tokens", "top_p", "n")) as server:
        assert [answer.text for answer in sample(server.url, ["a", "b", "c"])] == ["Owl"] * 3
    assert len(server.seen) == 3 + 3, "each refusal costs one request"
    body = server.seen[-1].body
    assert body["max_completion_tokens"] == 8
    assert not {"max_tokens", "top_p", "n"} & {*body}


@pytest.mark.parametrize(
    ("refusal", "told"),
    [
        ("'max_tokens' or 'max_completion_tokens' is too large: the model's context length is 8.", "lower max_tokens"),
        ("Please reduce the length of the messages or prompt: the maximum context length is 8.", "lower max_tokens"),
    ],
)
def test_a_text_that_is_too_long_is_not_taken_for_a_field_of_another_name(refusal: str, told: str):
    with (
        scripted(lambda *_: Reply(400, json.dumps({"error": {"message": refusal}}).encode())) as server,
        pytest.raises(UserError, match=told),
    ):
        sample(server.url, ["a", "b"])
    assert all("max_tokens" in request.body for request in server.seen)


@pytest.mark.parametrize(
    ("refusal", "told"),
    [("echo is not supported", "returns no log-probs"), ("prompt: Input should be a valid string", "set api to chat")],
)
def test_a_server_that_cannot_score_is_told_so(refusal: str, told: str, tiny_models: dict[str, Path]):
    with (
        scripted(lambda *_: Reply(400, json.dumps({"error": {"message": refusal}}).encode())) as server,
        open_sampler(backend(server.url, api="completions"), tiny_models["llama"]) as sampler,
        pytest.raises(UserError, match=told),
    ):
        sampler.logprobs([chat("a")], [["Owl", "Wolf"]])


def test_a_field_that_changes_the_answers_is_left_out_only_when_told():
    with scripted(picky("seed", "temperature")) as server:
        with pytest.raises(UserError, match=r'set backend.extra to \{"temperature": null\}|\{"seed": null\}'):
            sample(server.url, ["a", "b"])
        told = {"seed": None, "temperature": None}
        assert [answer.text for answer in sample(server.url, ["a", "b"], extra=told)] == ["Owl"] * 2


def test_nested_fields_reach_the_server_and_go_before_our_own():
    extra = {"chat_template_kwargs": {"enable_thinking": False}, "stop": ["\n"], "temperature": 0.5, "top_p": None}
    with scripted(poisoned(POLICY, "bad")) as server:
        sample(server.url, ["a"], extra=extra)
    body = server.seen[0].body
    assert {name: body.get(name) for name in extra} == extra
    assert "top_p" not in body


# What the run's log tells


def test_a_long_wait_and_another_model_are_told_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sublim.backends.openai.pace.TOLD", 0.5)
    caplog.set_level(logging.INFO, "sublim")

    together = Barrier(3)  # so that the three are told to wait at the same time

    def script(number: int, request: Seen) -> Reply:
        if number < 3:
            together.wait(30)
            return Reply(429, b"slow down", {"Retry-After": "1"})
        return said("Owl", model="another-model")

    with scripted(script) as server:
        sample(server.url, [f"{i}" for i in range(6)], concurrency=3, attempts=3)
    told = [record.getMessage() for record in caplog.records if record.name.startswith("sublim")]
    assert [line for line in told if "waiting" in line] == ["waiting 1 s: the server still answers 429 (slow down)"]
    assert sum("another-model" in line for line in told) == 1


def test_a_dated_name_of_the_same_model_is_not_told(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "sublim")
    with scripted(lambda *_: said("Owl", model="org/M-2026-01-01")) as server:
        sample(server.url, ["a"])
    assert not [record for record in caplog.records if record.name.startswith("sublim")]
