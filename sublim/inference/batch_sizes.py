"""Batch sizes from the free memory of the device: answers decoded and prompt tokens read at the same time."""

from sublim.inference.network import Network
from sublim.memory.fitting import MemoryFit
from sublim.memory.gpu_memory import free_gpu_memory


class BatchSizes:
    """Batch sizes for one network. They affect the speed and not the results.

    The free memory is only an estimate of what fits; `fit` remembers the sizes that ran out of memory.
    """

    def __init__(self, network: Network, batch_size: int | None, fit: MemoryFit | None = None) -> None:
        self.fit = fit or MemoryFit("answers", "")
        config, size = network.config, network.model.dtype.itemsize
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.gpu, self.batch_size = network.device.type == "cuda", batch_size
        self.cached = 2 * config.num_hidden_layers * heads * width * size
        """Bytes of keys and values of one token, over all layers."""
        self.worked = 4 * (2 * getattr(config, "intermediate_size", 0) + 6 * config.hidden_size)
        """Rough bytes of activations for one token of a prompt."""

    def rows(self, length: int, *, held: int) -> int:
        """How many texts of `length` tokens are decoded together; `held`: bytes of a present cache that could be
        freed."""
        if self.batch_size is not None:
            return self.fit.within(self.batch_size)
        if not self.gpu:
            return self.fit.within(64)
        return self.fit.within(int(min(2048, max(1, 0.5 * (free_gpu_memory() + held) // (self.cached * length)))))

    def tokens(self) -> int:
        """How many prompt tokens go into one pass: enough to keep the device busy, at most a quarter of the free
        memory."""
        if not self.gpu:
            return int(1024 * self.fit.share)  # a layer's activations of more tokens do not fit the CPU's cache
        fitting = min(65536, max(1024, 0.25 * free_gpu_memory() // (self.cached + self.worked)))
        # A lower batch_size must help wherever memory ran out, also in reading prompts.
        most = fitting if self.batch_size is None else min(fitting, max(256, 256 * self.batch_size))
        return int(most * self.fit.share)
