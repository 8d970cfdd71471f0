"""Environment variables that vLLM reads, settled before it is imported."""

import os

WANTED = {
    # The engine in this process: a stage on a GPU already has one to itself, what the engine raises is raised here,
    # and functions reach the model without being pickled.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # The second model runner, which only GPUs have, takes logits processors of another kind.
    "VLLM_USE_V2_MODEL_RUNNER": "0",
    # What Draws leaves is one token to take: FlashInfer's sampler, compiled when the engine starts, has nothing to do.
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
    # Triton rounds float32 factors to ten bits otherwise, in vLLM's attention for float32 among others.
    "TRITON_F32_DEFAULT": "ieee",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
}
DEFAULTS = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    # This process has other work for its threads, too.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}


def settle() -> None:
    """Sets what the engine needs, and what it would otherwise choose badly."""
    os.environ.update(WANTED)
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
