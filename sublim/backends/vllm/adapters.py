"""LoRA adapters in vLLM's engine: which it supports, and loading them."""

from pathlib import Path

from vllm.lora.request import LoRARequest

from sublim.backends.vllm.engine import RANKS, AdapterLimits, Engine, rank_limit, takes_adapters
from sublim.core.errors import UserError
from sublim.inference.config import VllmBackend
from sublim.models.adapters import PREFIX, beside_low_rank, lora_config
from sublim.models.weights_check import TensorShapes
from sublim.store.payloads import digest_committed


def adapter_limits(backend: VllmBackend, adapter: Path | None) -> AdapterLimits:
    """The limits with which the engine must be built. Raises UserError for an adapter that vLLM does not support."""
    if adapter is None:
        return AdapterLimits(rank_limit(backend.max_rank or 16))
    config = lora_config(adapter)
    if more := beside_low_rank(config):
        raise UserError(f"vLLM does not support {more}, which the adapter in {adapter} has: use the hf backend")
    rank = max([config.r, *(config.rank_pattern or {}).values()])
    limit = backend.max_rank or RANKS[-1]
    if rank > limit:
        way = "raise max_rank" if backend.max_rank else "merge it into its base first, or use the hf backend"
        raise UserError(f"the adapter in {adapter} has rank {rank}, the engine takes at most {limit}: {way}")
    modules = frozenset(module.rpartition(".")[2] for module in adapted_modules(adapter))
    if "lm_head" in modules:
        raise UserError(f"the adapter in {adapter} changes lm_head, and vLLM cannot score with it: use the hf backend")
    if not takes_adapters(backend):
        raise UserError(
            "on a GPU vLLM supports adapters in bfloat16 only: set the backend's dtype, or use the hf backend"
        )
    wanted = AdapterLimits(rank_limit(max(rank, backend.max_rank or 16)))
    return wanted._replace(modules=wanted.modules | modules)


def adapted_modules(adapter: Path) -> list[str]:
    """The modules that a plain LoRA changes, by their names in the base."""
    names = (name.removeprefix(PREFIX).partition(".lora_") for name in TensorShapes(adapter))
    return sorted({module for module, lora, _ in names if lora})


def load_adapter(engine: Engine, adapter: Path) -> LoRARequest:
    """Loads the adapter into the engine, and returns its handle for requests. Raises UserError if it does not fit."""
    content = digest_committed(adapter)
    request = LoRARequest(content[:16], engine.number(content), str(adapter))
    try:
        engine.llm.llm_engine.add_lora(request)
    except ValueError as error:
        raise UserError(
            f"vLLM cannot load the adapter in {adapter} ({' '.join(str(error).split())[:200]}): use the hf backend"
        ) from error
    return request
