"""How much of the GPU this process can still take."""

import torch


def free_gpu_memory() -> int:
    """Bytes that the driver has left, and those that torch holds for this process and does not use."""
    free, _ = torch.cuda.mem_get_info()
    return free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
