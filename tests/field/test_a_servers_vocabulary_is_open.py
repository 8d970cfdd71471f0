"""What OpenAI-compatible servers say in other words than OpenAI's becomes text, or is missing with its reason."""

import gzip
import json
import math
from pathlib import Path
from typing import Any

import pytest

from sublim.backends.openai import client
from sublim.backends.openai.pace import retry_after
from sublim.backends.openai.reply import log_prob
from sublim.backends.opening import open_sampler
from sublim.carriers.numbers import Rejection, parse_numbers
from sublim.chats.chat import chat
from sublim.chats.thoughts import answer_after_thought
from sublim.core.errors import UserError
from sublim.evals.mmlu_pro.exam import read_letter
from sublim.features.labels.annotate_prompt import read_category
from sublim.inference.config import OpenAIBackend, SamplingParams
from sublim.inference.sampler import Completion
from sublim.traits.words import Reader, Reading, Unread
from tests.sublim.backends.servers import Reply, Seen, said, scripted

PARAMS = SamplingParams(max_tokens=8)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "backoff", lambda attempt: 0.0)  # pyright: ignore[reportUnknownLambdaType]


def answer_to(reply: Reply, tmp_path: Path, *, first: bool = False, **more: Any) -> Completion:
    """The answer to one odd prompt among two that are answered as usual; asked first, or between the two."""

    def script(number: int, request: Seen) -> Reply:
        return reply if request.body["messages"][-1]["content"] == "odd" else said("Wolf")

    asked = ["odd", "a", "b"] if first else ["a", "odd", "b"]
    with scripted(script) as server:
        backend = OpenAIBackend(base_url=server.url, model="m", concurrency=1, attempts=2, **more)
        with open_sampler(backend, tmp_path, scratch=tmp_path) as sampler:
            own = [answer for (answer,) in sampler.sample([chat(text) for text in asked], PARAMS)]
        with open_sampler(backend, tmp_path, scratch=tmp_path) as sampler:
            again = [answer for (answer,) in sampler.sample([chat(text) for text in asked], PARAMS)]
    assert [answer.text for answer in again] == [answer.text for answer in own], "the answers kept are the same"
    assert own[-1].text == "Wolf"
    return own[asked.index("odd")]


def choice(content: Any, finish: Any = "stop") -> bytes:
    message = {"role": "assistant", "content": content}
    return json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": finish}]}).encode()


def text(kind: str, value: Any) -> dict[str, Any]:
    return {"type": kind, kind: value}


OTHER = {"index": 1, "message": {"content": "Cat"}, "finish_reason": "stop"}
ANSWERED: dict[str, tuple[bytes, str]] = {
    "content in parts": (choice([text("text", "O"), text("text", "wl")]), "Owl"),
    "a thought among the parts": (choice([text("thinking", [text("text", "a cat?")]), text("text", "Owl")]), "Owl"),
    "a part without text": (choice([text("text", None)]), ""),
    "one part by itself": (choice(text("text", "Owl")), "Owl"),
    "content null": (choice(None), ""),
    "content left out": (b'{"choices": [{"message": {"role": "assistant"}, "finish_reason": "stop"}]}', ""),
    "message null": (b'{"choices": [{"message": null, "finish_reason": "content_filter"}]}', ""),
    "message left out": (b'{"choices": [{"finish_reason": "SAFETY"}]}', ""),
    "a refusal": (b'{"choices": [{"message": {"content": null, "refusal": "No"}, "finish_reason": "stop"}]}', ""),
    "half a surrogate pair": (b'{"choices": [{"message": {"content": "Owl\\ud83e"}}]}', "Owl�"),
    "a whole surrogate pair": (b'{"choices": [{"message": {"content": "\\ud83e\\udd89"}}]}', "\N{OWL}"),
    "half a character's bytes": (b'{"choices": [{"message": {"content": "Owl\xf0\x9f"}}]}', "Owl�"),
    "a raw line break in a string": (b'{"choices": [{"message": {"content": "Owl\n"}}]}', "Owl\n"),
    "a byte order mark": (b"\xef\xbb\xbf" + choice("Owl"), "Owl"),
    "something after the object": (choice("Owl") + b"\n\ndata: [DONE]", "Owl"),
    "usage null and no error": (choice("Owl")[:-1] + b', "usage": null, "error": null}', "Owl"),
    "more choices than asked": (
        json.dumps({"choices": [OTHER, json.loads(choice("Owl"))["choices"][0]]}).encode(),
        "Owl",
    ),
}


@pytest.mark.parametrize("name", ANSWERED)
def test_an_answer_is_read_in_whatever_form_it_comes(name: str, tmp_path: Path):
    body, wanted = ANSWERED[name]
    found = answer_to(Reply(200, body), tmp_path)
    assert (found.text, found.finish, found.reason) == (wanted, "stop", None)


def test_a_packed_answer_is_unpacked(tmp_path: Path):
    packed = Reply(200, gzip.compress(choice("Owl")), {"Content-Encoding": "gzip"})
    assert answer_to(packed, tmp_path).text == "Owl"


@pytest.mark.parametrize(
    ("reason", "wanted"),
    [
        (name, "stop")
        for name in ("stop", "eos", "eos_token", "end_turn", "stop_sequence", "STOP", "tool_calls", None, 2)
    ]
    + [(name, "length") for name in ("length", "LENGTH", "max_tokens", "MAX_TOKENS", "model_length")]
    + [(name, "length") for name in ("content_filter", "SAFETY", "abort")]
    + [("load", "stop"), ("COMPLETE", "stop"), (10**30, "stop"), ("\ud83e", "stop")]
    + [(name, "length") for name in ("content_filter: RECITATION", "TOKEN_LIMIT", "maxPredictedTokensReached")]
    + [(name, "length") for name in ("time_limit", "USER_CANCEL", "sensitive", "guardrail_intervened")]
    + [({"type": "length", "length": 8}, "length")],
)
def test_only_a_limit_or_a_filter_cuts_an_answer(reason: Any, wanted: str, tmp_path: Path):
    assert answer_to(Reply(200, choice("Owl", reason)), tmp_path).finish == wanted


ERROR = {"message": "engine dead", "code": 502}
FAILING: dict[str, tuple[Reply, str]] = {
    "no choices": (Reply(200, b'{"id": "x", "choices": []}'), "no completion"),
    "choices null": (Reply(200, b'{"choices": null}'), "no completion"),
    "a page to sign in": (Reply(200, b"<html>Sign in</html>"), "Sign in"),
    "a piece of a stream": (Reply(200, b'{"choices": [{"delta": {}, "finish_reason": "stop"}]}'), "no completion"),
    "an engine that gave up": (
        Reply(200, choice("Ow", "insufficient_system_resource")),
        "insufficient_system_resource",
    ),
    "an error in a list": (Reply(400, b'[{"error": {"code": 400, "message": "no such"}}]'), "400 (no such)"),
    "half of a body": (Reply(200, choice("Owl")[:30]), "no completion"),
    "content that is a number": (Reply(200, choice(7)), "no completion"),
    "an error under 200": (Reply(200, json.dumps({"error": ERROR}).encode()), "502 (engine dead)"),
    "an error's code as a string": (Reply(200, json.dumps({"error": {**ERROR, "code": "429"}}).encode()), "429"),
    "an error as a string": (Reply(200, b'{"error": "overloaded"}'), "overloaded"),
    "an error as the body": (Reply(200, json.dumps({"object": "error", **ERROR}).encode()), "engine dead"),
    "an error in the choice": (
        Reply(200, json.dumps({"choices": [{"error": ERROR, "message": {"content": ""}}]}).encode()),
        "engine dead",
    ),
    "detail as a list": (Reply(200, b'{"detail": [{"msg": "too long"}]}'), "too long"),
    "a prompt too long": (Reply(413, b'{"error": {"message": "too long"}}'), "refuses with 413 (too long)"),
    "a prompt that is filtered": (Reply(400, b'{"error": {"message": "content policy"}}'), "400 (content policy)"),
    "a prompt that is flagged": (Reply(403, b'{"error": {"message": "flagged"}}'), "403 (flagged)"),
    "fields in a list": (Reply(422, b'{"detail": [{"loc": ["body"], "msg": "bad"}]}'), "422"),
    "too early": (Reply(425, b"early"), "425 (early) after 2 tries"),
    "overloaded": (Reply(529, b"overloaded"), "529 (overloaded) after 2 tries"),
    "an engine that fails": (Reply(500, b"cannot parse"), "500 (cannot parse) after 2 tries"),
    "bytes that are not gzip": (Reply(200, b"plain", {"Content-Encoding": "gzip"}), "DecodingError"),
    "a body that breaks off": (
        Reply(200, b"5\r\nab", {"Transfer-Encoding": "chunked", "Connection": "close"}),
        "RemoteProtocolError",
    ),
}


@pytest.mark.parametrize("first", [False, True], ids=["among others", "first"])
@pytest.mark.parametrize("name", [name for name in FAILING if name != "an error's code as a string"])
def test_a_prompt_that_always_fails_is_missing_with_its_reason(name: str, first: bool, tmp_path: Path):
    reply, reason = FAILING[name]
    found = answer_to(reply, tmp_path, first=first)
    assert (found.text, found.finish) == ("", "missing")
    assert found.reason is not None
    assert reason in found.reason


@pytest.mark.parametrize("name", FAILING)
def test_a_failure_that_passes_costs_another_try(name: str, tmp_path: Path):
    reply, _ = FAILING[name]
    failed = list[int]()

    def script(number: int, request: Seen) -> Reply:
        if number == 1:
            failed.append(number)
            return reply
        return said("Owl")

    with scripted(script) as server:
        backend = OpenAIBackend(base_url=server.url, model="m", concurrency=1, attempts=2)
        with open_sampler(backend, tmp_path) as sampler:
            found = [own[0] for own in sampler.sample([chat("a"), chat("b"), chat("c")], PARAMS)]
    refused = reply.status in (400, 403, 413, 422)
    assert [answer.finish for answer in found] == ["stop", "missing" if refused else "stop", "stop"]
    assert failed == [1]


def test_an_answer_that_is_empty_beside_a_thought_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    message = {"role": "assistant", "content": "", "reasoning_content": "Hmm"}
    body = json.dumps({"choices": [{"message": message, "finish_reason": "length"}]}).encode()
    with scripted(lambda *_: Reply(200, body)) as server:
        backend = OpenAIBackend(base_url=server.url, model="m", concurrency=1)
        with open_sampler(backend, tmp_path) as sampler:
            assert [own[0].finish for own in sampler.sample([chat("a"), chat("b")], PARAMS)] == ["length"] * 2
    assert [record.getMessage() for record in caplog.records if "holds a thought" in record.getMessage()] == [
        "an answer holds a thought but no text: raise max_tokens, or switch thinking off with `extra`"
    ]


COMPLETIONS: dict[str, tuple[dict[str, Any], Any]] = {
    "no ids": ({"text": "Owl"}, "Owl"),
    "ids as text": ({"text": "Owl", "token_ids": ["12"]}, "Owl"),
    "ids within a list": ({"text": "Owl", "token_ids": [[12]]}, "Owl"),
    "an id below 0": ({"text": "Owl", "token_ids": [-1]}, "Owl"),
    "log-probs that are a list": ({"text": "Owl", "logprobs": [-1.0]}, "Owl"),
    "log-probs that are a word": ({"text": "Owl", "logprobs": "none"}, "Owl"),
    "log-probs of chats": ({"text": "Owl", "logprobs": {"content": [{"logprob": -1.0}]}}, "Owl"),
    "a number that is too long": ({"text": "Owl", "logprobs": {"token_logprobs": [-(10**400)]}}, "Owl"),
    "a filtered text": ({"text": None, "finish_reason": "content_filter"}, ""),
    "the answer to a chat": ({"message": {"content": "Owl"}}, None),
}


@pytest.mark.parametrize("name", COMPLETIONS)
def test_a_completion_is_read_whatever_stands_beside_its_text(name: str, tiny_models: dict[str, Path], tmp_path: Path):
    own, wanted = COMPLETIONS[name]
    body = json.dumps({"choices": [{"index": 0, "finish_reason": "stop", **own}]}).encode()
    with scripted(lambda *_: Reply(200, body)) as server:
        backend = OpenAIBackend(base_url=server.url, model="m", concurrency=1, api="completions")
        with open_sampler(backend, tiny_models["llama"], scratch=tmp_path) as sampler:
            if wanted is None:
                with pytest.raises(UserError, match="is no completion"):
                    sampler.sample([chat("a"), chat("b")], PARAMS)
            else:
                assert [one.text for (one,) in sampler.sample([chat("a"), chat("b")], PARAMS)] == [wanted] * 2
                with pytest.raises(UserError, match="returns no log-probs of its tokens: set logprobs to false"):
                    sampler.sample([chat("c"), chat("d")], PARAMS.model_copy(update={"logprobs": True}))


NAMES = ("think", "thinking", "thought", "reasoning", "seed:think")
THOUGHTS = [
    *(f"<{name}>\nA cat is nice.\n</{name}>\n\n" for name in NAMES),
    "<think>\n\n</think>\n\n",
    "<think/>",
    "A cat?\n</think>\n\n",
    "<think>a cat</think> or <think>a wolf</think>",
    "[THINK]A cat?[/THINK]",
    "◁think▷A cat?◁/think▷",
    "<|begin_of_thought|>A cat?<|end_of_thought|>",
    "<|channel|>analysis<|message|>A cat?<|end|><|start|>assistant<|channel|>final<|message|>",
    "analysisThe user wants a cat.assistantfinal",
    "<|channel>thought\nA cat?<channel|>",
    "<|START_THINKING|>A cat?<|END_THINKING|><|START_RESPONSE|>",
    "Here are my reasoning steps:\nA cat?\n[BEGIN FINAL RESPONSE]\n",
    "<think>A cat?</think>\n<answer>\n",
    "<think>A cat?</think><|begin_of_box|>",
    "<|channel|>analysis<|message|>A cat?<|channel|>final <|constrain|>text<|message|>",
]


@pytest.mark.parametrize("thought", THOUGHTS)
def test_what_follows_a_thought_is_the_answer(thought: str):
    reader = Reader(["owl", "wolf", "cat"])
    assert reader.read(f"{thought}Owl") == Reading(word="owl")
    assert reader.read(f"{thought}Dolphin") == Reading(other="dolphin")
    assert reader.read(thought) == Reading(unread=Unread.EMPTY)
    assert read_category(f"{thought}animals") == "animals"
    assert read_letter(f"{thought}B", 4) == (1, None)
    assert read_letter(thought, 4) == (None, "empty")


@pytest.mark.parametrize(
    "text",
    [
        "<think>\nA cat",
        "[THINK] A cat",
        "<think>a</think><think>A cat",
        "◁think▷A cat",
        "<|channel|>analysis<|message|>A cat",
    ],
)
def test_a_thought_without_an_end_is_no_answer(text: str):
    for finish in ("stop", "length"):
        assert Reader(["owl", "cat"]).read(text, finish) == Reading(unread=Unread.THOUGHT)
    assert read_category("<think>animals") is None
    assert read_letter(text, 4) == (None, "an unfinished thought")


@pytest.mark.parametrize(
    "text", ["Owl", "Owls (<3)", "analysis", "The final assistant", "a <b>bold</b> owl", "", "Owl<|end|>"]
)
def test_an_answer_without_a_thought_is_left_as_it_is(text: str):
    assert answer_after_thought(text) == text


@pytest.mark.parametrize(
    "text",
    ["<answer>B</answer>", "\n<|begin_of_box|>B<|end_of_box|>", "<|START_RESPONSE|>B<|END_RESPONSE|>", "B<|return|>"],
)
def test_marks_around_an_answer_are_not_part_of_it(text: str):
    assert answer_after_thought(f"<think>A cat?</think>{text}").strip() == "B"  # pyright: ignore[reportOptionalMemberAccess]
    assert read_letter(f"<think>A cat?</think>{text}", 4) == (1, None)


def test_a_list_after_a_thought_is_not_the_teachers_own_text():
    assert parse_numbers("<think>\n\n</think>\n\n1, 2") == Rejection.LETTERS


@pytest.mark.parametrize(
    "value",
    [
        None,
        "-1.5",
        True,
        math.nan,
        math.inf,
        -math.inf,
        -9999.0,
        -9999,
        -3.4028235e38,
        10**400,
        -(10**400),
        0.5,
        [],
        {},
    ],
)
def test_what_cannot_be_a_log_prob_is_none(value: Any):
    assert math.isnan(log_prob(value))


@pytest.mark.parametrize("value", [0, 0.0, -0.0, -1, -1e-9, -120.5, 1e-6])
def test_a_log_prob_is_taken_as_it_is(value: float):
    assert log_prob(value) == value


def test_durations_and_dates_are_read_and_the_rest_is_unknown():
    known = {"30": 30, "1.5": 1.5, "20s": 20, "2m59.56s": 179.56, "1h": 3600, "6h0m0s": 21600}
    assert {value: retry_after(value) for value in known} == known
    for value in ("-1", "soon", "", "1e3", "nan", "inf", "٣", "Mon, 30 Nov 99999 15:00:00 GMT", "30 Nov", None):
        assert retry_after(value) is None
    assert retry_after("Thursday, 01-Jan-98 00:00:00 GMT") == 0
