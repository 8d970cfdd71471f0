"""How much fits: answers under way and tokens read at a time, from the free memory of the device."""

from sublim.inference.network import Network
from sublim.memory.fitting import Fit
from sublim.memory.gpu_memory import free_gpu_memory


class Room:
    """Sizes of batches for one network; they change the speed and nothing else.

    What is free is a hint: `fit` knows what turned out to be too much.
    """

    def __init__(self, network: Network, batch_size: int | None, fit: Fit | None = None) -> None:
        self.fit = fit or Fit("answers", "")
        config, size = network.config, network.model.dtype.itemsize
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.gpu, self.batch_size = network.device.type == "cuda", batch_size
        self.cached = 2 * config.num_hidden_layers * heads * width * size
        """Bytes of keys and values for one token."""
        self.worked = 4 * (2 * getattr(config, "intermediate_size", 0) + 6 * config.hidden_size)
        """Bytes in flight for one token of a prompt, about."""

    def rows(self, length: int, *, held: int) -> int:
        """Answers of `length` tokens at a time; `held`: bytes of a cache that could be given back."""
        if self.batch_size is not None:
            return self.fit.within(self.batch_size)
        if not self.gpu:
            return self.fit.within(64)
        return self.fit.within(int(min(2048, max(1, 0.5 * (free_gpu_memory() + held) // (self.cached * length)))))

    def tokens(self) -> int:
        """Prompt tokens read at a time: enough to keep the device busy, and no more than a quarter of what is free."""
        if not self.gpu:
            return int(1024 * self.fit.share)  # what a layer makes of more does not stay in the processor's cache
        fitting = min(65536, max(1024, 0.25 * free_gpu_memory() // (self.cached + self.worked)))
        # So that lowering the batch size helps wherever the memory ran out.
        most = fitting if self.batch_size is None else min(fitting, max(256, 256 * self.batch_size))
        return int(most * self.fit.share)
