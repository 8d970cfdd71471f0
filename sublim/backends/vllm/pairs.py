"""Texts read twice at once in vLLM's engine: with the adapter, and by the base as a copy that writes the same tokens.

Both must be read in the same passes. They are handed to the engine in waves whose prompts fit one pass and whose keys
and values fit its memory, so that nothing is put off; should the engine part them all the same, it is noticed.
"""

from collections.abc import Iterable, Iterator
from itertools import count
from typing import Any, NamedTuple

from vllm import LLM
from vllm import SamplingParams as EngineParams
from vllm.inputs import TokensPrompt

from sublim.core.errors import UserError

PAIR = "sublim_pair"
"""Where a request carries its Member among vLLM's extra arguments."""
_numbers = count()


class Member(NamedTuple):
    """One of the two readings of a text."""

    pair: int
    copy: bool
    """Whether it is the base's."""


class Request(NamedTuple):
    """What the engine is asked for one text."""

    ids: list[int]
    params: EngineParams


class Room(NamedTuple):
    """What one wave may have: pairs, tokens of all prompts, tokens of all prompts and answers."""

    pairs: int
    prompts: int
    texts: int


def room(llm: LLM) -> Room:
    """Half of what the engine can hold, as every text is there twice."""
    config = llm.llm_engine.vllm_config
    scheduler, block_size = config.scheduler_config, config.cache_config.block_size
    cache: Any = llm.llm_engine.engine_core.engine_core.scheduler.kv_cache_config  # pyright: ignore
    # Layers with a window and layers without (Gemma's) take blocks of their own, each for the whole text.
    blocks = cache.num_blocks // len(cache.kv_cache_groups)
    # Every request may leave the last of its blocks unfilled.
    blocks -= 2 * scheduler.max_num_seqs
    return Room(scheduler.max_num_seqs // 2, scheduler.max_num_batched_tokens // 2, blocks * block_size // 2)


def waves(requests: Iterable[Request], room: Room) -> Iterator[list[Request]]:
    """The requests in their order, as many at a time as fit. Raises UserError where one alone does not."""
    wave, prompts, texts = list[Request](), 0, 0
    for request in requests:
        prompt = len(request.ids)
        text = prompt + (request.params.max_tokens or 0)
        if prompt > room.prompts or text > room.texts or not room.pairs:
            raise UserError(
                f"a text of {text} tokens and its copy for the base do not fit one pass of the engine "
                f"({room.prompts} tokens of prompt, {room.texts} in all): use the hf backend"
            )
        if wave and (len(wave) == room.pairs or prompts + prompt > room.prompts or texts + text > room.texts):
            yield wave
            wave, prompts, texts = [], 0, 0
        wave.append(request)
        prompts, texts = prompts + prompt, texts + text
    if wave:
        yield wave


def doubled(wave: Iterable[Request]) -> Iterator[tuple[TokensPrompt, EngineParams]]:
    """Each text as the base's copy and then as itself, neither with keys and values of any other."""
    for ids, params in wave:
        number = next(_numbers)
        for copy in (True, False):
            own: Any = params.clone()
            own.extra_args = {**(params.extra_args or {}), PAIR: Member(number, copy)}
            yield TokensPrompt(prompt_token_ids=ids, cache_salt=f"{number} {copy}"), own


def apart() -> UserError:
    """The error for a text that is read without its copy."""
    return UserError("vLLM read a text in another pass than its copy: lower batch_size, or use the hf backend")
