"""How much GPU memory this process can still use."""

import torch


def free_gpu_memory() -> int:
    """Bytes that are free on the GPU, plus those that torch has reserved for this process and does not use."""
    free, _ = torch.cuda.mem_get_info()
    return free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
