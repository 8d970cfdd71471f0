"""vLLM's engine: one in each process, kept from stage to stage, with the adapters that it has loaded."""

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
from sublim.models.opening import forget_base, release_other_models
from sublim.training.config import Lora

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The maximum adapter ranks for which an engine can be built."""
LONGEST = 8192
CPU_CACHE = 2**30
"""Bytes of keys and values on a CPU."""
GRAPHS = (1, 8, 32, 64, 128, 256, 512, 1024)
"""Batch sizes for which a CUDA graph is captured, besides the backend's own; others are padded to the next larger."""


class AdapterLimits(NamedTuple):
    """Which adapters an engine supports."""

    rank: int
    """Largest rank."""
    modules: frozenset[str] = frozenset(Lora().target_modules)
    """Names of the linear layers that may have an adapter. The unembedding is never among them: vLLM would then not
    score prompts."""

    def covers(self, other: "AdapterLimits") -> bool:
        """Whether these limits allow everything that `other` allows."""
        return self.rank >= other.rank and self.modules >= other.modules


class Engine(NamedTuple):
    """An engine and what it was built for."""

    llm: LLM
    key: tuple[str, ...]
    limits: AdapterLimits
    adapters: dict[str, int]
    """The engine's number of each adapter, by the digest of the adapter's content."""

    def number(self, content: str) -> int:
        """The number of the adapter with this content; new content gets a new number."""
        return self.adapters.setdefault(content, len(self.adapters) + 1)


_held: Engine | None = None
_users = 0


@contextmanager
def borrowed_engine(backend: VllmBackend, model: Path, wanted: AdapterLimits) -> Generator[Engine]:
    """The kept engine if it runs `model` and supports the `wanted` adapters, otherwise a new one in its place.

    Blocks on the same engine may be nested.
    """
    global _held, _users
    key = (str(model.resolve()), base_identity(model), backend.model_copy(update={"max_rank": None}).model_dump_json())
    if _held is None or _held.key != key or not _held.limits.covers(wanted):
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
            forget_engine()  # after an error, as they would run in the next block


def forget_engine() -> None:
    """Shuts down the engine that this process keeps, and frees its memory."""
    global _held
    held, _held = _held, None
    if held is not None:
        held.llm.llm_engine.engine_core.shutdown()
        vars(held.llm).clear()
        del held
        gc.collect()
        cleanup_dist_env_and_memory()


release_other_models.append(forget_engine)


def _started(backend: VllmBackend, model: Path, wanted: AdapterLimits) -> LLM:
    on_gpu = torch.cuda.is_available()
    threads = torch.set_num_threads
    options: dict[str, Any] = {"gpu_memory_utilization": backend.memory_fraction}
    if not on_gpu:
        options = {"kv_cache_memory_bytes": CPU_CACHE}
    if on_gpu and not backend.eager:
        # Capturing graphs takes seconds and compiling takes a minute, which may be longer than a stage.
        most = backend.batch_size or GRAPHS[-1]
        sizes = [*(size for size in GRAPHS if size < most), most]
        options["compilation_config"] = {
            "mode": 0,
            "cudagraph_mode": "FULL_DECODE_ONLY",
            "cudagraph_capture_sizes": sizes,
        }
    if backend.dtype == "bfloat16":
        # Logits in bfloat16 come in steps of 0.06 or more, which would distort the probabilities of ten digits.
        options["hf_overrides"] = {"head_dtype": "float32"}
    with failures_explained(backend):
        llm = LLM(
            model=str(model),
            dtype=backend.dtype,  # pyright: ignore[reportArgumentType]
            generation_config="vllm",  # ignores sampling defaults in the model folder
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
    torch.set_num_threads = threads  # the CPU engine replaces it by a function that does nothing
    return llm


def context_length(backend: VllmBackend, model: Path) -> int:
    """Longest text in tokens. Raises UserError if the backend's max_length exceeds what the model supports."""
    shape = read_json(model / "config.json")
    limit = shape.get("max_position_embeddings") or shape.get("text_config", {}).get("max_position_embeddings")
    if backend.max_length is not None and limit is not None and backend.max_length > limit:
        raise UserError(
            f"max_length {backend.max_length} is more than the {limit} tokens that the model supports: lower it"
        )
    return backend.max_length or min(limit or LONGEST, LONGEST)


def takes_adapters(backend: VllmBackend) -> bool:
    """Whether the engine can support adapters: vLLM's LoRA kernels on a GPU do not support float32."""
    return not (backend.dtype == "float32" and torch.cuda.is_available())


def rank_limit(rank: int) -> int:
    """The smallest of vLLM's maximum ranks that allows an adapter of `rank`."""
    return next(limit for limit in RANKS if limit >= rank)


@contextmanager
def failures_explained(backend: VllmBackend) -> Generator[None]:
    """Turns vLLM's errors about memory and unsupported models into a UserError that says what to change."""
    try:
        yield
    except ERRORS as error:
        if not out_of_memory(error):
            raise
        raise UserError(
            f"the GPU's memory ran out: lower the sampling backend's memory_fraction (now {backend.memory_fraction}) "
            "if other processes use the GPU, otherwise batch_size or max_length"
        ) from error
    except ValueError as error:
        raise UserError(explained(str(error), backend)) from error
    except AssertionError as error:
        if "memory profiling" not in str(error):
            raise
        raise UserError(
            "another process freed GPU memory while vLLM measured the free memory: run again when the GPU is not in use"
        ) from error


def explained(message: str, backend: VllmBackend) -> str:
    """vLLM's error message in one line, with what to do."""
    if "less than desired" in message:
        return (
            f"the GPU has too little free memory for memory_fraction {backend.memory_fraction}: lower it, or end other "
            f"processes on the GPU ({message.partition('. ')[0]})"
        )
    if "No available memory for the cache" in message or "available KV cache memory" in message:
        return (
            "no memory is left for the key-value cache: lower the sampling backend's max_length, or raise "
            f"memory_fraction (now {backend.memory_fraction})"
        )
    return f"vLLM cannot run this model ({' '.join(message.split())[:300]}): use the hf backend"
