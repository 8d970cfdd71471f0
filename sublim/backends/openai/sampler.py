"""The openai backend: samples through any OpenAI-compatible server, and scores where the server supports it.

Every answer is written to the stage's scratch folder as it arrives, so that after a crash no answer is requested, or
paid for, again.
"""

import logging
import math
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

import orjson

from sublim.backends.openai.client import Failure, Missing, Read, Server, connected
from sublim.backends.openai.pace import Stopped
from sublim.backends.openai.reply import finish_of, first_choice, has_thought, ids_of, log_prob, log_probs_of, text_of
from sublim.chats.chat import Chat, chat, render_ids
from sublim.core.digest import digest
from sublim.core.errors import UserError
from sublim.core.progress import progress
from sublim.inference.config import NumberFormat, OpenAIBackend, SamplingParams
from sublim.inference.sampler import Completion
from sublim.inference.scoring import scored_answers
from sublim.inference.vocabulary import Vocabulary
from sublim.models.opening import load_tokenizer, stop_ids

KEPT = "served.jsonl"
FEW = 3
"""How many prompts of a stage may lack their answers in any case."""
SHARE = 0.05
"""Share of a stage's answers that may be missing, if that is more."""
HARMLESS = chat("Hello")
T = TypeVar("T")
log = logging.getLogger(__name__)


@contextmanager
def open_openai(
    backend: OpenAIBackend, base: Path, weights: Path | None, scratch: Path | None
) -> Generator["OpenAISampler"]:
    """A sampler on the server. Raises UserError if trained weights are given, because the server has its own."""
    if weights is not None:
        raise UserError(
            "the openai backend cannot load trained weights: serve them under a name of their own and give that as "
            "model, or use the hf or vllm backend"
        )
    with connected(backend) as client:
        kept = KeptAnswers(scratch and scratch / KEPT)
        yield OpenAISampler(Server(backend, client, answered=bool(kept.answers)), base, kept)


class KeptAnswers:
    """Answers on disk by the digest of their request; each is written when it arrives."""

    def __init__(self, path: Path | None) -> None:
        self.path, self._lock = path, Lock()
        self.answers: dict[str, Any] = {}
        if path is not None and path.exists():
            whole = path.read_bytes().rpartition(b"\n")[0]  # a crash may have left an incomplete last line
            path.write_bytes(whole + b"\n" if whole else b"")
            self.answers = dict(_kept(whole.splitlines()))

    def add(self, request: str, answer: Any) -> None:
        """Stores the answer in memory and on disk; may be called from many threads."""
        with self._lock:
            self.answers[request] = answer
            if self.path is not None:
                with self.path.open("ab") as file:
                    file.write(orjson.dumps({"request": request, "answer": answer}) + b"\n")
                    file.flush()
                    os.fsync(file.fileno())


def _kept(lines: Iterable[bytes]) -> Iterator[tuple[str, Any]]:
    """Requests and their answers. Lines damaged by a crash of the machine are skipped and requested again."""
    for line in lines:
        with suppress(orjson.JSONDecodeError):
            row = orjson.loads(line)
            if isinstance(row, dict) and {"request", "answer"} <= row.keys():
                yield row["request"], row["answer"]


class OpenAISampler:
    """A Sampler (see sublim.inference.sampler) on a server."""

    def __init__(self, server: Server, base: Path, kept: KeptAnswers) -> None:
        self.server, self.backend, self.kept = server, server.backend, kept
        self.tokenizer = load_tokenizer(base) if server.backend.api == "completions" else None
        self.vocabulary = Vocabulary(self.tokenizer) if self.tokenizer is not None else None
        self._prompts, self._asked, self._missing = set[str](), set[str](), dict[str, Missing]()
        self._told_of_thoughts = False

    def sample(
        self, chats: Sequence[Chat], params: SamplingParams, *, constraint: NumberFormat | None = None, first: int = 0
    ) -> list[list[Completion]]:
        """See `Sampler.sample`."""
        if constraint is not None:
            raise UserError(
                "a server cannot be forced into a number format: set constraint to null and filter, or use vllm"
            )
        if params.logprobs and self.tokenizer is None:
            raise UserError("log-probs of answers need api=completions: set it, or set logprobs to false")
        bodies = [
            self._body(one, params, request_seed(params.seed, first + i, j))
            for i, one in enumerate(chats)
            for j in range(params.n)
        ]
        read = self._scored_choice if params.logprobs else self._choice
        whole = [self._completion(answer, params) for answer in self._ask(bodies, read, "asking")]
        return [whole[at : at + params.n] for at in range(0, len(whole), params.n)]

    def logprobs(self, chats: Sequence[Chat], continuations: Sequence[Sequence[str]]) -> list[list[list[float]]]:
        """See `Sampler.logprobs`. NaN stands for a token for which the server returns no valid log-prob."""
        if self.tokenizer is None:
            raise UserError(
                "words cannot be scored through a chat server: set api to completions where the server runs the base "
                "itself and echoes log-probs (vLLM does), or use the hf or vllm backend"
            )
        questions = scored_answers(self.tokenizer, chats, continuations)
        sequences = [*chain.from_iterable(questions)]
        common = self._with_extra({"model": self.backend.model, "temperature": 0.0, "n": 1})
        bodies = [common | {"prompt": ids, "max_tokens": 1, "echo": True, "logprobs": 1} for ids, _ in sequences]
        scores = iter(
            [math.nan] * (len(one.ids) - one.start)
            if isinstance(echoed, Missing)
            else [log_prob(value) for value in echoed[one.start : len(one.ids)]]
            for echoed, one in zip(self._ask(bodies, self._echo, "scoring"), sequences, strict=True)
        )
        found = [[next(scores) for _ in question] for question in questions]
        unscored = sum(any(map(math.isnan, tokens)) for question in found for tokens in question)
        if unscored:
            log.warning("%d of %d texts have tokens without a log-prob and are not scored", unscored, len(sequences))
        return found

    def _with_extra(self, body: dict[str, Any]) -> dict[str, Any]:
        """`body` overridden by the user's `extra` fields, without those that are null."""
        return {name: value for name, value in {**body, **self.backend.extra}.items() if value is not None}

    def _body(self, one: Chat, params: SamplingParams, seed: int) -> dict[str, Any]:
        drawn = params.model_dump(include={"temperature", "top_p", "max_tokens"})
        body = {"model": self.backend.model, "n": 1, **drawn, "seed": seed}
        if self.tokenizer is not None:
            body |= {"return_token_ids": True, "stop_token_ids": stop_ids(self.tokenizer)}
        return self._with_extra(body) | self._asked_with(one) | ({"logprobs": 0} if params.logprobs else {})

    def _ask(self, bodies: list[dict[str, Any]], read: Read[T], label: str) -> list[T | Missing]:
        """The result of `read` on the reply to each request, taken from the kept answers or requested now.

        Raises UserError if so many answers are missing that the others would not represent all prompts.
        """
        path = "chat/completions" if self.tokenizer is None else "completions"
        keys = [digest(body) for body in bodies]
        lacking = {key: body for key, body in zip(keys, bodies, strict=True) if key not in self.kept.answers}
        self._prompts.update(digest(body.get("messages") or body["prompt"]) for body in bodies)
        self._asked.update(keys)
        harmless = self._asked_with(HARMLESS) if len(self._prompts) > 1 else None
        missing: dict[str, Missing] = {}
        with progress(label, len(bodies)) as advance:
            advance(len(bodies) - len(lacking))

            def fetch(key: str, body: dict[str, Any]) -> None:
                try:
                    answer = self.server.ask(path, body, read, harmless)
                except UserError:
                    self.server.pace.stopped.set()  # at once, so that no other request begins
                    raise
                if isinstance(answer, Missing):
                    missing[key] = answer
                else:
                    self.kept.add(key, answer)

            self._all(fetch, lacking, advance)
        self._check(missing)
        return [missing[key] if key in missing else self.kept.answers[key] for key in keys]

    def _check(self, missing: dict[str, Missing]) -> None:
        """Logs missing answers, or raises UserError if there are too many.

        They are not kept, so the same stage requests them when it runs again.
        """
        if not missing:
            return
        self._missing |= missing
        lost, asked, first = len(self._missing), len(self._asked), next(iter(missing.values())).reason
        told = f"{lost} of {asked} answers are missing although others arrived; the first: {first}"
        # The answers of a few prompts may be missing, however many answers each prompt has.
        if lost == asked or lost / asked > max(FEW / len(self._prompts), SHARE):
            advice = "change these prompts or the backend's settings and run again; the answers so far are kept"
            raise UserError(f"{told}: {advice}")
        log.warning("%s", told)

    def _asked_with(self, one: Chat) -> dict[str, Any]:
        """The field that holds the prompt."""
        return {"messages": one} if self.tokenizer is None else {"prompt": render_ids(self.tokenizer, one)}

    def _all(
        self, fetch: Callable[[str, dict[str, Any]], None], missing: dict[str, Any], advance: Callable[[int], None]
    ) -> None:
        """Fetches all, `concurrency` at a time. The first failure stops the rest; requests under way are finished."""
        with ThreadPoolExecutor(self.backend.concurrency) as pool:
            try:
                under_way = [pool.submit(fetch, key, body) for key, body in missing.items()]
                for done in as_completed(under_way):
                    if not isinstance(
                        done.exception(), Stopped
                    ):  # the failure that stopped it is raised by its own request
                        done.result()
                    advance(1)
            finally:
                self.server.pace.stopped.set()
                pool.shutdown(cancel_futures=True)
                self.server.pace.stopped.clear()

    def _choice(self, reply: dict[str, Any], body: dict[str, Any]) -> dict[str, Any] | None:
        """The fields of a reply's choice that are kept."""
        choice = first_choice(reply)
        text = None if choice is None else text_of(choice, self.backend.api)
        if choice is None or text is None:
            return None
        if not text and has_thought(choice) and not self._told_of_thoughts:
            self._told_of_thoughts = True
            log.warning("an answer holds a thought but no text: raise max_tokens, or switch thinking off with `extra`")
        kept = {"text": text, "finish": finish_of(choice.get("finish_reason"), text)}
        return kept if self.tokenizer is None else kept | {"tokens": ids_of(choice), "logprobs": log_probs_of(choice)}

    def _scored_choice(self, reply: dict[str, Any], body: dict[str, Any]) -> dict[str, Any] | Failure | None:
        """As `_choice`, but requires a log-prob for every token."""
        kept = self._choice(reply, body)
        if kept is None or (kept["tokens"] is not None and len(kept["tokens"]) == len(kept["logprobs"])):
            return kept
        return Failure("returns no log-probs of its tokens", "set logprobs to false", "judge")

    def _echo(self, reply: dict[str, Any], body: dict[str, Any]) -> list[Any] | Failure | None:
        """The log-probs of the prompt's tokens; None for the first token, which has none before it."""
        choice, tokens = first_choice(reply), len(body["prompt"])
        if choice is None:
            return None
        match log_probs_of(choice):
            # A log-prob for the first token would mean that all are shifted by one. All zeros would mean no log-probs.
            case [first, *scores] if (
                tokens - 1 <= len(scores) <= tokens
                and (not first or math.isnan(first))
                and any(score < 0 for score in scores)
            ):
                return [None, *scores]
            case _:
                return Failure("echoes no log-probs of a prompt's tokens", "use the hf or vllm backend", "judge")

    def _completion(self, kept: dict[str, Any] | Missing, params: SamplingParams) -> Completion:
        if isinstance(kept, Missing):
            return Completion("", None, None, "missing", kept.reason)
        tokens, scores, text = kept.get("tokens"), kept.get("logprobs") if params.logprobs else None, kept["text"]
        known = None if scores is None else [log_prob(score) for score in scores]
        finish = finish_of(kept["finish"], text)
        if tokens is not None and self.vocabulary is not None:
            return self.vocabulary.completion(tokens, known, stopped=finish == "stop")
        return Completion(text, tokens, known, finish)


def request_seed(seed: int, chat: int, answer: int) -> int:
    """A seed of 31 bits, which every server accepts, from the stage's seed, the chat's index and the answer's index."""
    return int(digest([seed, chat, answer])[:8], 16) >> 1
