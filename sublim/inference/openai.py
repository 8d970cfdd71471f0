"""The openai backend: samples, and where the server can also scores, through any OpenAI-compatible server.

Costs: what the server takes for it. Every answer is kept in the stage's scratch as it comes, so that neither a crash
nor a rate limit is paid for twice.
"""

import os
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

import httpx
import orjson

from sublim.chat import Chat, Message, answer_ids, end_of_turn, render_ids
from sublim.digest import digest
from sublim.errors import UserError
from sublim.inference import Completion, NumberFormat, OpenAIBackend, SamplingParams
from sublim.inference.openai_client import Server, Stopped
from sublim.inference.scoring import Scored
from sublim.inference.vocabulary import Vocabulary
from sublim.models import load_tokenizer, token_ids
from sublim.progress import progress

KEPT = "served.jsonl"
T = TypeVar("T")


@contextmanager
def open_openai(
    backend: OpenAIBackend, base: Path, weights: Path | None, scratch: Path | None
) -> Generator["OpenAISampler"]:
    """Refuses trained weights: the server has its own."""
    if weights is not None:
        raise UserError(
            "the openai backend cannot load trained weights: serve them under a name of their own and give that as "
            "model, or use the hf or vllm backend"
        )
    limits = httpx.Limits(max_connections=backend.concurrency)
    with httpx.Client(timeout=backend.timeout, limits=limits) as client:
        yield OpenAISampler(Server(backend, client), base, Kept(scratch and scratch / KEPT))


class Kept:
    """Answers on disk by the digest of their request, written one by one."""

    def __init__(self, path: Path | None) -> None:
        self.path, self._lock = path, Lock()
        self.answers: dict[str, Any] = {}
        if path is not None and path.exists():
            whole = path.read_bytes().rpartition(b"\n")[0]  # a crash may have cut the last line
            path.write_bytes(whole + b"\n" if whole else b"")
            self.answers = {row["request"]: row["answer"] for row in map(orjson.loads, whole.splitlines())}

    def add(self, request: str, answer: Any) -> None:
        with self._lock:
            self.answers[request] = answer
            if self.path is not None:
                with self.path.open("ab") as file:
                    file.write(orjson.dumps({"request": request, "answer": answer}) + b"\n")
                    file.flush()
                    os.fsync(file.fileno())


class OpenAISampler:
    """A Sampler (see sublim.inference) on a server."""

    def __init__(self, server: Server, base: Path, kept: Kept) -> None:
        self.server, self.backend, self.kept = server, server.backend, kept
        self.tokenizer = load_tokenizer(base) if server.backend.api == "completions" else None
        self.vocabulary = Vocabulary(self.tokenizer) if self.tokenizer is not None else None

    def sample(
        self, chats: Sequence[Chat], params: SamplingParams, *, constraint: NumberFormat | None = None, first: int = 0
    ) -> list[list[Completion]]:
        if constraint is not None:
            raise UserError(
                "a server cannot be held to a number format: set constraint to null and filter, or use vllm"
            )
        if params.logprobs and self.tokenizer is None:
            raise UserError("log-probs of answers need api completions: set it, or logprobs to false")
        bodies = [
            self._body(one, params, request_seed(params.seed, first + i, j))
            for i, one in enumerate(chats)
            for j in range(params.n)
        ]
        whole = [self._completion(answer, params) for answer in self._ask(bodies, self._choice, "asking")]
        return [whole[at : at + params.n] for at in range(0, len(whole), params.n)]

    def logprobs(self, chats: Sequence[Chat], continuations: Sequence[Sequence[str]]) -> list[list[list[float]]]:
        if self.tokenizer is None:
            raise UserError(
                "words cannot be scored through a chat server: set api to completions where the server runs the base "
                "itself and echoes log-probs (vLLM does), or use the hf or vllm backend"
            )
        questions = [
            [self._scored(one, text) for text in texts] for one, texts in zip(chats, continuations, strict=True)
        ]
        sequences = [scored for question in questions for scored in question]
        bodies = [
            self._common() | {"prompt": ids, "max_tokens": 1, "echo": True, "logprobs": 1} for ids, _ in sequences
        ]
        answers = self._ask(bodies, self._echo, "scoring")
        if any(len(echoed) <= len(one.ids) - 1 for echoed, one in zip(answers, sequences, strict=True)):
            self.server.nonsense("fewer log-probs than tokens")
        scores = iter([echoed[one.start : len(one.ids)] for echoed, one in zip(answers, sequences, strict=True)])
        return [[next(scores) for _ in question] for question in questions]

    def _common(self) -> dict[str, Any]:
        return {"model": self.backend.model, "temperature": 0.0, "n": 1, **self.backend.extra}

    def _body(self, one: Chat, params: SamplingParams, seed: int) -> dict[str, Any]:
        drawn = {
            "temperature": params.temperature,
            "top_p": params.top_p,
            "max_tokens": params.max_tokens,
            "seed": seed,
        }
        if self.tokenizer is None:
            return self._common() | drawn | {"messages": one}
        ends = {*token_ids(self.tokenizer.eos_token_id), end_of_turn(self.tokenizer)}
        asked = {"prompt": render_ids(self.tokenizer, one), "return_token_ids": True, "stop_token_ids": sorted(ends)}
        return self._common() | drawn | asked | ({"logprobs": 0} if params.logprobs else {})

    def _ask(self, bodies: list[dict[str, Any]], read: Callable[[dict[str, Any]], T], label: str) -> list[T]:
        """What `read` makes of the answer to each request: from scratch, or asked for now."""
        path = "chat/completions" if self.tokenizer is None else "completions"
        keys = [digest(body) for body in bodies]
        missing = {key: body for key, body in zip(keys, bodies, strict=True) if key not in self.kept.answers}
        with progress(label, len(bodies)) as advance:
            advance(len(bodies) - len(missing))

            def fetch(key: str, body: dict[str, Any]) -> None:
                try:
                    self.kept.add(key, read(self.server.post(path, body)))
                except UserError:
                    self.server.pace.stopped.set()  # now, so that no other request begins
                    raise

            self._all(fetch, missing, advance)
        return [self.kept.answers[key] for key in keys]

    def _all(
        self, fetch: Callable[[str, dict[str, Any]], None], missing: dict[str, Any], advance: Callable[[int], None]
    ) -> None:
        """Fetches all, `concurrency` at a time; the first failure stops the rest, and what is under way is kept."""
        with ThreadPoolExecutor(self.backend.concurrency) as pool:
            try:
                under_way = [pool.submit(fetch, key, body) for key, body in missing.items()]
                for done in as_completed(under_way):
                    if not isinstance(done.exception(), Stopped):  # the failure that stopped it is among the others
                        done.result()
                    advance(1)
            finally:
                self.server.pace.stopped.set()
                pool.shutdown(cancel_futures=True)
                self.server.pace.stopped.clear()

    def _choice(self, answer: dict[str, Any]) -> dict[str, Any]:
        """The one choice of an answer, checked and cut down to what is kept."""
        match answer:
            case {"choices": [{"message": {"content": str() | None as text}, **choice}]}:
                return {"text": text or "", "finish": choice.get("finish_reason")}
            case {"choices": [{"text": str(text), **choice}]} if self.tokenizer is not None:
                tokens, scores = choice.get("token_ids"), (choice.get("logprobs") or {}).get("token_logprobs")
                return {"text": text, "finish": choice.get("finish_reason"), "tokens": tokens, "logprobs": scores}
            case _:
                self.server.nonsense(answer)

    def _echo(self, answer: dict[str, Any]) -> list[float]:
        """Log-probs by place; the first token has none, and 0 stands there."""
        match answer:
            case {"choices": [{"logprobs": {"token_logprobs": [None, *scores]}}]} if all(
                isinstance(score, float | int) for score in scores
            ):
                return [0.0, *scores]
            case {"choices": [{"logprobs": None}]}:
                raise UserError(f"the server {self.backend.base_url} echoes no log-probs: use the hf or vllm backend")
            case _:
                self.server.nonsense(answer)

    def _completion(self, kept: dict[str, Any], params: SamplingParams) -> Completion:
        tokens, scores, text = kept.get("tokens"), kept.get("logprobs") if params.logprobs else None, kept["text"]
        if params.logprobs and (tokens is None or scores is None or len(tokens) != len(scores)):
            raise UserError(
                f"the server {self.backend.base_url} gives no log-probs of its tokens: set logprobs to false"
            )
        stopped = kept["finish"] == "stop"  # whatever else cut an answer (a content filter) cut it too
        if tokens is not None and self.vocabulary is not None:
            return self.vocabulary.completion(tokens, scores, stopped=stopped)
        return Completion(str(text), tokens, scores, "stop" if stopped else "length")

    def _scored(self, one: Chat, text: str) -> Scored:
        assert self.tokenizer is not None
        ids, start, end = answer_ids(self.tokenizer, [*one, Message(role="assistant", content=text)])
        return Scored(ids[: end - 1], start)


def request_seed(seed: int, chat: int, answer: int) -> int:
    """31 bits (what every server takes) from the stage's seed, the chat and the answer."""
    return int(digest([seed, chat, answer])[:8], 16) >> 1
