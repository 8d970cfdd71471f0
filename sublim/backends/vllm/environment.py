"""Environment variables that vLLM reads; they must be set before it is imported."""

import os

WANTED = {
    # Run the engine in this process: a stage on a GPU already has its own process, the engine's exceptions are raised
    # here, and functions can be applied to the model without pickling them.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # The second model runner, which exists for GPUs only, has another interface for logits processors.
    "VLLM_USE_V2_MODEL_RUNNER": "0",
    # Draws leaves only one possible token, so FlashInfer's sampler, compiled at the start, is of no use.
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
    # Otherwise Triton rounds float32 factors to ten bits, for example in vLLM's attention.
    "TRITON_F32_DEFAULT": "ieee",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
}
DEFAULTS = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    # Do not pin threads, because this process also runs other work.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}


def set_environment() -> None:
    """Sets the variables in WANTED, and those in DEFAULTS that the user has not set."""
    os.environ.update(WANTED)
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
