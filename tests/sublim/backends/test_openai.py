"""The openai sampler against a server that misbehaves by script, and against vLLM's own on the bundled model."""

import email.utils
import json
import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from sublim.backends.openai import sampler as openai
from sublim.backends.openai.pace import Pace, backoff, retry_after
from sublim.backends.opening import open_sampler
from sublim.carriers.number_prompts import NumberPrompts, load_number_templates
from sublim.chats.chat import Chat, chat
from sublim.core.errors import UserError
from sublim.files.jsonl import read_jsonl
from sublim.inference.config import HfBackend, NumberFormat, OpenAIBackend, SamplingParams
from sublim.models.opening import load_tokenizer
from sublim.rows.generate import GenerateConfig, generate_numbers
from tests.sublim.backends.agreement import CHATS, GREEDY, disagreements, evidence, plain_evidence, read
from tests.sublim.backends.servers import Reply, Seen, VllmServer, echo, said, scripted

PARAMS = SamplingParams(max_tokens=8)
KEY = "sk-secret-0123456789"
HF = HfBackend(dtype="float32")


def backend(url: str, **more: Any) -> OpenAIBackend:
    return OpenAIBackend(base_url=url, model="m", **more)


def ask(url: str, chats: list[Chat], params: SamplingParams = PARAMS, scratch: Path | None = None, **more: Any):
    with open_sampler(backend(url, **more), Path("no-base"), scratch=scratch) as sampler:
        return sampler.sample(chats, params)


def test_answers_come_in_order_each_with_a_seed_of_its_own():
    chats = [chat(f"question {i}") for i in range(12)]
    with scripted(delay=0.05) as server:
        answers = ask(server.url, chats, SamplingParams(max_tokens=8, n=3), concurrency=4)
        again = ask(server.url, chats[5:6], SamplingParams(max_tokens=8, n=3))
    assert server.busiest == 4
    texts = [answer.text for own in answers for answer in own]
    assert [text.rpartition(" ")[0] for text in texts] == [f"question {i}" for i in range(12) for _ in range(3)]
    assert len(set(texts)) == 36
    assert texts[15:18] != [answer.text for answer in again[0]], "the index of the chat is in the seed"
    body = server.seen[0].body
    assert {**body, "messages": [], "seed": 0} == {
        "model": "m", "messages": [], "seed": 0, "n": 1, "temperature": 1.0, "top_p": 1.0, "max_tokens": 8,
    }  # fmt: skip


def test_a_busy_server_is_left_alone_for_as_long_as_it_asks():
    def script(number: int, request: Seen) -> Reply:
        if number == 0:
            return Reply(429, b"slow down", {"Retry-After": "1"})
        if number == 1:
            time.sleep(0.3)  # so that it is still under way when the first is refused
        return echo(number, request)

    with scripted(script) as server:
        answers = ask(server.url, [chat(f"{i}") for i in range(6)], concurrency=2)
    assert [own[0].text[0] for own in answers] == list("012345")
    first, _, *rest = (seen.at for seen in server.seen)
    assert len(rest) == 5
    assert min(rest) - first >= 1.0, "only the request that was under way beside it came earlier, by whomever"


def test_what_the_server_counts_sets_the_pace():
    with scripted(lambda *_: said("x", usage={"total_tokens": 300})) as server:
        ask(server.url, [chat("a"), chat("b")], concurrency=1, tokens_per_minute=60_000)
    first, second = (seen.at for seen in server.seen)
    assert second - first >= 0.25, "a millisecond a token, and far fewer were estimated"


def test_waits_without_a_word_from_the_server_grow_up_to_a_limit():
    for attempt in range(12):
        longest = min(60.0, 0.5 * 2**attempt)
        waits = {backoff(attempt) for _ in range(20)}
        assert longest / 2 <= min(waits) < max(waits) <= longest


def test_failures_of_the_server_are_tried_again_and_then_told():
    def failing(number: int, request: Seen) -> Reply:
        return Reply(500, b"oops") if number < 2 else echo(number, request)

    with scripted(failing) as server:
        assert len(ask(server.url, [chat("a")])) == 1
        first, second, third = (seen.at for seen in server.seen)
        assert second - first >= 0.25
        assert third - second >= 0.5
    with (
        scripted(lambda *_: Reply(503, b"down for now")) as server,
        pytest.raises(UserError, match=r"still answers 503 \(down for now\) after 2 tries: .* run again"),
    ):
        ask(server.url, [chat("a")], attempts=2)
    with pytest.raises(UserError, match=r"does not answer \(ConnectError\) after 1 tries"):
        ask(server.url, [chat("a")], attempts=1)


def test_a_rate_limit_or_a_crash_costs_no_answer_twice(tmp_path: Path):
    chats = [chat(f"{i}") for i in range(10)]
    left = [4]

    def script(number: int, request: Seen) -> Reply:
        if left[0] == 0:
            return Reply(429, b"quota used up", {"Retry-After": "0"})
        left[0] -= 1
        return echo(number, request)

    with scripted(script) as server:
        with pytest.raises(UserError, match="the answers so far are kept"):
            ask(server.url, chats, scratch=tmp_path, attempts=1, concurrency=2)
        kept = (tmp_path / "served.jsonl").read_bytes()
        assert kept.count(b"\n") == 4
        # A crash in the middle of a line.
        (tmp_path / "served.jsonl").write_bytes(kept[:-10])
        left[0], before = 1000, len(server.seen)
        answers = ask(server.url, chats, scratch=tmp_path)
        assert len(server.seen) - before == 7
        assert [own[0].text[0] for own in answers] == list("0123456789")
        ask(server.url, chats, scratch=tmp_path)
        assert len(server.seen) - before == 7


def test_a_stage_resumes_from_the_answers_it_has(tmp_path: Path):
    out, scratch = tmp_path / "out", tmp_path / "scratch"
    out.mkdir()
    scratch.mkdir()
    broken = [True]

    def script(number: int, request: Seen) -> Reply:
        return Reply(500, b"oops") if broken[0] and number >= 5 else said("1, 2, 3")

    with scripted(script) as server:
        config = GenerateConfig(
            prompts=NumberPrompts(templates=load_number_templates("numbers")),
            n_prompts=12,
            sampling=PARAMS,
            backend=backend(server.url, attempts=1, concurrency=1),
        )
        with pytest.raises(UserError, match="still answers 500"):
            generate_numbers(out, config, scratch=scratch, base=tmp_path)
        broken[0] = False
        generate_numbers(out, config, scratch=scratch, base=tmp_path)
    assert len(server.seen) == 13, "five answers, one failure, seven answers"
    assert [row["answer"] for row in read_jsonl(out / "rows.jsonl")] == ["1, 2, 3"] * 12


@pytest.mark.parametrize(
    "body",
    [b"<html>Welcome</html>", b"[]", b"{}", b'{"choices": []}', b'{"choices": [{"message": {"content": 7}}]}', b"\xff"],
)
def test_garbage_is_told_and_not_kept(body: bytes, tmp_path: Path):
    with (
        scripted(lambda *_: Reply(200, body)) as server,
        pytest.raises(UserError, match=r"sends a reply that is no completion .* check base_url"),
    ):
        ask(server.url, [chat("a")], scratch=tmp_path)
    assert len(server.seen) == 1
    assert not (tmp_path / "served.jsonl").exists()


def test_the_key_goes_to_the_server_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv("SOME_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    with scripted() as server:
        ask(server.url, [chat("a")], scratch=tmp_path, key_variable="SOME_KEY")
        assert server.seen[0].headers["Authorization"] == f"Bearer {KEY}"
    with scripted(lambda *_: Reply(401, f"wrong key: {KEY}".encode())) as server:
        with pytest.raises(UserError, match=r"401 \(wrong key: \*\*\*\): put the right key into SOME_KEY") as refused:
            ask(server.url, [chat("b")], scratch=tmp_path, key_variable="SOME_KEY")
        assert len(server.seen) == 1
    with scripted(lambda *_: Reply(200, KEY.encode())) as server, pytest.raises(UserError) as garbled:
        ask(server.url, [chat("c")], scratch=tmp_path, key_variable="SOME_KEY")
    monkeypatch.delenv("SOME_KEY")
    with (
        scripted(lambda *_: Reply(401, b"no key")) as server,
        pytest.raises(UserError, match="set SOME_KEY to the key"),
    ):
        ask(server.url, [chat("a")], key_variable="SOME_KEY")
    written = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    config = backend(server.url, key_variable="SOME_KEY")
    told = [
        caplog.text,
        str(refused.value),
        str(garbled.value),
        config.model_dump_json(),
        json.dumps(config.identity()),
    ]
    assert not any(KEY in text for text in written + told)
    assert "SOME_KEY" not in json.dumps(config.identity())
    with pytest.raises(ValueError, match="base_url"):
        backend(f"http://user:{KEY}@127.0.0.1/v1")


def test_requests_and_tokens_keep_their_pace(monkeypatch: pytest.MonkeyPatch):
    with scripted() as server:
        ask(server.url, [chat(f"{i}") for i in range(5)], requests_per_minute=600)
    times = [seen.at for seen in server.seen]
    assert max(times) - min(times) >= 0.35
    clock, slept = [100.0], list[float]()
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    pace = Pace(None, 6000)
    monkeypatch.setattr(pace, "sleep", lambda seconds: slept.append(round(seconds, 3)))
    pace.wait(50)
    pace.wait(50)
    pace.settle(50, 250)
    pace.wait(50)
    assert slept == [0, 0.5, 3.0], "a hundred tokens a second, and two hundred more than estimated"


def test_retry_after_is_seconds_or_a_date():
    assert retry_after("2.5") == 2.5
    assert retry_after(email.utils.formatdate(time.time() + 30, usegmt=True)) == pytest.approx(30, abs=2)
    assert retry_after(None) is retry_after("soon") is None


def test_refuses_what_a_server_cannot_do(tmp_path: Path):
    with scripted() as server:
        opening = open_sampler(backend(server.url), tmp_path, weights=tmp_path)
        with pytest.raises(UserError, match="cannot load trained weights"), opening:
            pass
        with open_sampler(backend(server.url), tmp_path) as sampler:
            with pytest.raises(UserError, match="set constraint to null"):
                sampler.sample([chat("a")], PARAMS, constraint=NumberFormat())
            with pytest.raises(UserError, match="words cannot be scored through a chat server"):
                sampler.logprobs([chat("a")], [["Owl"]])
            with pytest.raises(UserError, match="need api=completions"):
                sampler.sample([chat("a")], SamplingParams(max_tokens=4, logprobs=True))
    assert server.seen == []


# vLLM's own server, last: it takes its time to start.


@pytest.fixture(scope="module")
def served(vllm_server: VllmServer | None) -> OpenAIBackend:
    if vllm_server is None:
        pytest.skip("vLLM is not installed on this machine")
    return OpenAIBackend(base_url=vllm_server.ready(), model="smollm2", api="completions")


def differences(backend: OpenAIBackend, base: Path) -> Iterator[str]:
    with open_sampler(backend, base) as sampler:
        written = evidence(sampler)
    # The server draws with its own random numbers.
    return disagreements(plain_evidence(base), written, lambda: read(base, None, written.drawn), shared=False)


def test_a_server_agrees_with_hf(served: OpenAIBackend, smollm2: Path):
    assert list(differences(served, smollm2)) == []
    words = [["Owl", "Elephant", "Tiger"]] * len(CHATS)
    with open_sampler(served, smollm2) as sampler, open_sampler(HF, smollm2) as ours:
        for found, wanted in zip(sampler.logprobs(CHATS, words), ours.logprobs(CHATS, words), strict=True):
            for a, b in zip(found, wanted, strict=True):
                assert a == pytest.approx(b, abs=1e-3)
    with open_sampler(served.model_copy(update={"api": "chat"}), smollm2) as sampler:
        answers = sampler.sample(CHATS, GREEDY)
    tokenizer = load_tokenizer(smollm2)
    wanted = [tokenizer.decode(ids or [], skip_special_tokens=True) for ids in plain_evidence(smollm2).greedy]
    assert [own[0].text for own in answers] == wanted


@pytest.mark.parametrize("extra", [{"top_k": 5}, {"repetition_penalty": 1.3}])
def test_a_default_hidden_in_a_server_is_seen(extra: dict[str, Any], served: OpenAIBackend, smollm2: Path):
    assert next(differences(served.model_copy(update={"extra": extra}), smollm2))


def test_a_second_bos_is_seen(served: OpenAIBackend, smollm2: Path, monkeypatch: pytest.MonkeyPatch):
    plainly = openai.render_ids

    def doubled(tokenizer: Any, one: Sequence[Any]) -> list[int]:
        return [tokenizer.bos_token_id, *plainly(tokenizer, list(one))]

    monkeypatch.setattr(openai, "render_ids", doubled)
    assert next(differences(served, smollm2))


def test_a_server_says_when_a_prompt_is_too_long(served: OpenAIBackend, smollm2: Path):
    with open_sampler(served, smollm2) as sampler, pytest.raises(UserError, match=r"refuses with 400 \(.*512"):
        sampler.sample([chat("owl " * 600)], PARAMS)
