"""vLLM's engine: one per process, kept from stage to stage, with the adapters it has taken."""

import gc
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from vllm import LLM
from vllm.distributed import cleanup_dist_env_and_memory

from sublim.backends.vllm.draws import Draws
from sublim.core.errors import UserError
from sublim.inference.config import VllmBackend
from sublim.memory.errors import out_of_memory
from sublim.memory.fitting import ERRORS
from sublim.models.files import base_identity, read_json
from sublim.models.opening import forget_base, neighbours
from sublim.training.config import Lora

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Largest adapter ranks that an engine can be made for."""
LONGEST = 8192
CPU_CACHE = 2**30
"""Bytes of keys and values without a GPU."""
GRAPHS = (1, 8, 32, 64, 128, 256, 512, 1024)
"""Batch sizes whose decode step is captured, and the backend's own beside them; others are padded to the next."""


class Takes(NamedTuple):
    """Which adapters an engine takes."""

    rank: int
    """At most this."""
    modules: frozenset[str] = frozenset(Lora().target_modules)
    """On these linear layers. Never the output embedding: with an adapter slot there, vLLM scores no prompts."""

    def covers(self, other: "Takes") -> bool:
        return self.rank >= other.rank and self.modules >= other.modules


class Engine(NamedTuple):
    """An engine and what it was made for."""

    llm: LLM
    key: tuple[str, ...]
    takes: Takes
    adapters: dict[str, int]
    """Adapters by content, numbered as the engine knows them."""

    def number(self, content: str) -> int:
        """The adapter's number; a new one for new content."""
        return self.adapters.setdefault(content, len(self.adapters) + 1)


_held: Engine | None = None
_users = 0


@contextmanager
def lent_engine(backend: VllmBackend, model: Path, wanted: Takes) -> Generator[Engine]:
    """The kept engine where it runs `model` and takes such adapters, otherwise a new one in its place.

    Blocks on the same engine may be nested.
    """
    global _held, _users
    key = (str(model.resolve()), base_identity(model), backend.model_copy(update={"max_rank": None}).model_dump_json())
    if _held is None or _held.key != key or not _held.takes.covers(wanted):
        if _users:
            raise RuntimeError("another vLLM engine is in use in this process: close its sampler first")
        forget_engine()
        forget_base()
        _held = Engine(_started(backend, model, wanted), key, wanted, {})
    engine = _held
    _users += 1
    try:
        yield engine
    finally:
        _users -= 1
        if _held is engine and engine.llm.llm_engine.has_unfinished_requests():
            forget_engine()  # whatever went wrong, they would run in the next block


def forget_engine() -> None:
    """Ends the engine this process keeps and gives its memory back."""
    global _held
    held, _held = _held, None
    if held is not None:
        held.llm.llm_engine.engine_core.shutdown()
        vars(held.llm).clear()
        del held
        gc.collect()
        cleanup_dist_env_and_memory()


neighbours.append(forget_engine)


def _started(backend: VllmBackend, model: Path, wanted: Takes) -> LLM:
    on_gpu = torch.cuda.is_available()
    threads = torch.set_num_threads
    options: dict[str, Any] = {"gpu_memory_utilization": backend.memory_fraction}
    if not on_gpu:
        options = {"kv_cache_memory_bytes": CPU_CACHE}
    if on_gpu and not backend.eager:
        # Captured in seconds, where compiling takes a minute: a stage may be shorter than that.
        most = backend.batch_size or GRAPHS[-1]
        sizes = [*(size for size in GRAPHS if size < most), most]
        options["compilation_config"] = {
            "mode": 0,
            "cudagraph_mode": "FULL_DECODE_ONLY",
            "cudagraph_capture_sizes": sizes,
        }
    if backend.dtype == "bfloat16":
        # Logits in steps of bfloat16 (.06 and more) would show in the odds of ten digits.
        options["hf_overrides"] = {"head_dtype": "float32"}
    with naming_the_field(backend):
        llm = LLM(
            model=str(model),
            dtype=backend.dtype,  # pyright: ignore[reportArgumentType]
            generation_config="vllm",  # none of the model folder's sampling habits
            skip_tokenizer_init=True,
            max_model_len=context_length(backend, model),
            max_num_seqs=backend.batch_size or (GRAPHS[-1] if on_gpu else 64),
            enforce_eager=backend.eager or not on_gpu,
            enable_prefix_caching=True,
            enable_lora=takes_adapters(backend),
            max_lora_rank=wanted.rank,
            lora_target_modules=sorted(wanted.modules),
            max_loras=1,
            max_cpu_loras=8,
            logits_processors=[Draws],
            use_tqdm_on_load=False,
            **options,
        )
    torch.set_num_threads = threads  # the CPU engine puts a function in its place that does nothing
    return llm


def context_length(backend: VllmBackend, model: Path) -> int:
    """Tokens of the longest text. Raises UserError where the model cannot read what is asked."""
    shape = read_json(model / "config.json")
    limit = shape.get("max_position_embeddings") or shape.get("text_config", {}).get("max_position_embeddings")
    if backend.max_length is not None and limit is not None and backend.max_length > limit:
        raise UserError(f"max_length {backend.max_length} is more than the {limit} tokens the model reads: lower it")
    return backend.max_length or min(limit or LONGEST, LONGEST)


def takes_adapters(backend: VllmBackend) -> bool:
    """Whether there is an engine that takes adapters: vLLM's kernels for them on a GPU know no float32."""
    return not (backend.dtype == "float32" and torch.cuda.is_available())


def rank_limit(rank: int) -> int:
    """The least of vLLM's limits that takes an adapter of `rank`."""
    return next(limit for limit in RANKS if limit >= rank)


@contextmanager
def naming_the_field(backend: VllmBackend) -> Generator[None]:
    """Says in one line what to change when memory does not suffice, or changes, or the model cannot run here."""
    try:
        yield
    except ERRORS as error:
        if not out_of_memory(error):
            raise
        raise UserError(
            f"the GPU's memory ran out: lower the sampling backend's memory_fraction (now {backend.memory_fraction}) "
            "where others use the card too, otherwise batch_size or max_length"
        ) from error
    except ValueError as error:
        raise UserError(explained(str(error), backend)) from error
    except AssertionError as error:
        if "memory profiling" not in str(error):
            raise
        raise UserError(
            "another process gave back GPU memory while vLLM measured what there is: run again once the card is quiet"
        ) from error


def explained(message: str, backend: VllmBackend) -> str:
    """One line for what vLLM says in many."""
    if "less than desired" in message:
        return (
            f"the GPU is too full for memory_fraction {backend.memory_fraction}: lower it, or end what else uses "
            f"the card ({message.partition('. ')[0]})"
        )
    if "No available memory for the cache" in message or "available KV cache memory" in message:
        return (
            f"no memory is left for the cache: lower the sampling backend's max_length, or raise memory_fraction "
            f"(now {backend.memory_fraction})"
        )
    return f"vLLM cannot run this model ({' '.join(message.split())[:300]}): use the hf backend"
