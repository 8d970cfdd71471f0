"""The loss and gradients of one micro-batch: in eager mode, packed for flash-attention, or as one CUDA graph."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from transformers import DynamicCache, PretrainedConfig, PreTrainedModel

from sublim.core.errors import UserError
from sublim.training.masking import UNTRAINED, Batch, PackedBatch, packed

WARM_UPS = 2


class Step(Protocol):
    """Computes one micro-batch of an update."""

    prefix: Sequence[int]
    """Tokens at the beginning of all rows that the step supplies itself and reads once for all of them."""

    def __call__(self, model: Any, batch: Batch, tokens: int) -> Float[Tensor, ""]:
        """Adds the micro-batch's gradients to those of the parameters, and returns its part of the loss in nats.

        `tokens` is the number of label tokens in the whole update, by which the summed loss is divided.
        """
        ...


class EagerStep:
    """Computes in eager mode; the steps with another loss than `summed_loss` are made from this one.

    The tokens with which every row begins (a system prompt) are read once per micro-batch, since they attend to nothing
    else.
    """

    def __init__(self, device: torch.device, dtype: str, prefix: Sequence[int] = ()) -> None:
        self.device, self.prefix, self.autocast = device, prefix, dtype == "bfloat16"

    def __call__(self, model: Any, batch: Batch, tokens: int) -> Float[Tensor, ""]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            loss = self.summed_loss(model, batch) / tokens
        loss.backward()
        return loss.detach()

    def summed_loss(self, model: Any, batch: Batch) -> Float[Tensor, ""]:
        """The loss summed over the label tokens."""
        return summed_loss(model, batch.to(self.device), self.prefix)


class PackedStep(EagerStep):
    """Computes in eager mode without padding: flash-attention reads rows of any length as one sequence, in which no row
    attends to another.

    The loss and the gradients are those of padded rows. The dropout mask of an adapter is another one, since it is
    drawn for other shapes.
    """

    def summed_loss(self, model: Any, batch: Batch) -> Float[Tensor, ""]:
        """Cross-entropy summed over the label tokens."""
        rows = packed(batch).to(self.device)
        return F.cross_entropy(packed_logits(model, rows).float(), rows.labels, reduction="sum")


class Captured(NamedTuple):
    """A CUDA graph with the tensors that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    batch: Batch
    mask: Tensor
    share: Tensor
    loss: Tensor
    gradients: list[tuple[Tensor, Tensor]]
    """Every trainable parameter with the tensor to which the graph writes its gradient."""


class GraphedStep:
    """Replays forward and backward pass as one CUDA graph, because a small model's thousands of kernels take longer to
    launch than to run.

    Every micro-batch is padded to one shape [rows, width], with rows that have no labels.
    """

    prefix: Sequence[int] = ()

    def __init__(self, device: torch.device, dtype: str, rows: int, width: int, answer: int) -> None:
        self.device, self.autocast = device, dtype == "bfloat16"
        self.rows, self.width, self.answer = rows, width, answer
        self.captured: Captured | None = None
        self.loss: Callable[[Any, Batch, Sequence[int]], Float[Tensor, ""]] = summed_loss
        """The loss of a micro-batch, summed over its label tokens."""

    def __call__(self, model: Any, batch: Batch, tokens: int) -> Float[Tensor, ""]:
        batch = padded(batch, self.rows, self.width, self.answer)
        if self.captured is None:
            self.captured = self._capture(model, batch)
        made = self.captured
        for mine, given in zip(made.batch, batch, strict=True):
            mine.copy_(given, non_blocking=True)
        made.mask.copy_(causal_mask(made.batch.attention_mask))
        made.share.fill_(1 / tokens)
        if made.gradients[0][0].grad is made.gradients[0][1]:  # from the last micro-batch; a replay overwrites it
            for parameter, gradient in made.gradients:
                parameter.grad = gradient.clone()
        made.graph.replay()
        for parameter, gradient in made.gradients:
            parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
        return made.loss.clone()

    def forget(self, rows: int) -> None:
        """Frees the graph and its memory; the next graph has `rows` rows."""
        self.captured, self.rows = None, rows

    def _capture(self, model: Any, batch: Batch) -> Captured:
        batch = batch.to(self.device)
        mask, share = causal_mask(batch.attention_mask), torch.ones((), device=self.device)
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

        def run() -> Tensor:
            with torch.autocast("cuda", torch.bfloat16, enabled=self.autocast):
                loss = self.loss(model, batch._replace(attention_mask=mask), ()) * share
            loss.backward()
            return loss.detach()

        # In their first runs libraries set up workspaces, which must not be captured: so they run on a side stream.
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UPS):
                run()
                model.zero_grad(set_to_none=True)
        torch.cuda.current_stream().wait_stream(aside)
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph):
                loss = run()
        finally:  # a failed capture may leave its own stream as the current one
            torch.cuda.set_stream(stream)
        gradients = [(each, each.grad) for each in parameters if each.grad is not None]
        model.zero_grad(set_to_none=True)
        return Captured(graph, batch, mask, share, loss, gradients)


def within_windows(config: PretrainedConfig, width: int) -> bool:
    """Whether rows of `width` tokens fit into the attention window of every layer."""
    text = config.get_text_config()
    windows = (getattr(text, name, None) for name in ("sliding_window", "attention_chunk_size", "window_size"))
    return all(window is None or width <= window for window in windows)


def summed_loss(model: Any, batch: Batch, prefix: Sequence[int]) -> Float[Tensor, ""]:
    """Cross-entropy summed over the label tokens."""
    return answer_loss(answer_logits(model, batch, prefix), batch)


def answer_loss(logits: Float[Tensor, "b a v"], batch: Batch) -> Float[Tensor, ""]:
    """Cross-entropy of the logits that predict the answers, summed over the label tokens."""
    return F.cross_entropy(
        logits.flatten(0, 1).float(), batch.labels.flatten(), ignore_index=UNTRAINED, reduction="sum"
    )


def answer_logits(model: Any, batch: Batch, prefix: Sequence[int]) -> Float[Tensor, "b a v"]:
    """Logits at the positions that predict the answers.

    With a `prefix`, which is put before every row, the prefix and the padded rows must fit into every attention window.
    """
    inputs = answer_inputs(partial(model, logits_to_keep=1), batch, prefix)
    width, answer = batch.input_ids.shape[1] - 1, batch.labels.shape[1]
    # As indices, because with a count the head would copy its weights for every row of the slice.
    return model(**inputs, logits_to_keep=torch.arange(width - answer, width, device=batch.input_ids.device)).logits


def answer_hidden(model: Any, batch: Batch, prefix: Sequence[int]) -> Float[Tensor, "b a d"]:
    """The last hidden states at the same positions, which the output head would turn into these logits."""
    body = causal(model).base_model
    return body(**answer_inputs(body, batch, prefix)).last_hidden_state[:, -batch.labels.shape[1] :]


def answer_inputs(read: Callable[..., Any], batch: Batch, prefix: Sequence[int]) -> dict[str, Any]:
    """What a model is called with for a padded batch. `read` reads the prefix into the cache."""
    ids = batch.input_ids[:, :-1]
    mask = batch.attention_mask[..., :-1] if batch.attention_mask.ndim == 2 else batch.attention_mask
    positions, cache = batch.position_ids[:, :-1], None
    if prefix:
        cache = DynamicCache()
        read(input_ids=ids.new_tensor([prefix]), past_key_values=cache, use_cache=True)
        cache.batch_repeat_interleave(len(ids))
        mask = torch.cat([mask.new_ones(len(ids), len(prefix)), mask], 1)
        positions = positions + len(prefix)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "position_ids": positions,
        "past_key_values": cache,
        "use_cache": cache is not None,
    }


def packed_logits(model: Any, batch: PackedBatch) -> Float[Tensor, "a v"]:
    """Logits at `batch.places`, which predict the tokens to be learned."""
    return model(**packed_inputs(batch), logits_to_keep=batch.places).logits[0]


def packed_hidden(model: Any, batch: PackedBatch) -> Float[Tensor, "a d"]:
    """The last hidden states at `batch.places`."""
    return causal(model).base_model(**packed_inputs(batch)).last_hidden_state[0, batch.places]


def packed_inputs(batch: PackedBatch) -> dict[str, Any]:
    """What a model is called with for a packed batch."""
    return {
        "input_ids": batch.input_ids,
        "position_ids": batch.position_ids,
        "use_cache": False,
        # Without these every layer derives them from the positions, which waits for the GPU.
        "cu_seq_lens_q": batch.bounds,
        "cu_seq_lens_k": batch.bounds,
        "max_length_q": batch.longest,
        "max_length_k": batch.longest,
    }


def causal(model: Any) -> PreTrainedModel:
    """The causal language model itself, with the adapter's layers in it where it has one."""
    return cast(PreTrainedModel, model.get_base_model() if isinstance(model, PeftModel) else model)


def allowed_logits(model: Any, hidden: Float[Tensor, "m d"], tokens: Int[Tensor, " a"]) -> Float[Tensor, "m a"]:
    """Logits of a few tokens, in float32, from hidden states and the head's rows; bias and soft cap as the model has.

    Logits in bfloat16 come in steps of 0.06, which would drown differences between teachers, and all other rows of the
    head would be computed in vain. Raises UserError for a head with an adapter.
    """
    whole = causal(model)
    head: Any = whole.get_output_embeddings()
    if isinstance(head, BaseTunerLayer):
        raise UserError("soft labels read the head's own rows: take its name out of method.target_modules")
    bias = getattr(head, "bias", None)
    with torch.autocast(hidden.device.type, enabled=False):
        logits = F.linear(hidden.float(), head.weight[tokens].float(), None if bias is None else bias[tokens].float())
    cap = getattr(whole.config.get_text_config(), "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)


def causal_mask(mask: Tensor) -> Tensor:
    """The mask [b, 1, t, t] of the t input tokens from a padding mask [b, t + 1].

    Padding attends to itself, since attention to nothing would give NaN.
    """
    seen = mask[:, :-1].bool()
    size = seen.shape[1]
    square = torch.ones(size, size, dtype=torch.bool, device=mask.device)
    return (seen[:, None, None, :] & square.tril()) | torch.eye(size, dtype=torch.bool, device=mask.device)


def padded(batch: Batch, rows: int, width: int, answer: int) -> Batch:
    """The batch padded to `rows` x `width` on the left, and with copies of its first row that have no labels."""
    left, more = width - batch.input_ids.shape[1], rows - len(batch.input_ids)
    wide = Batch(
        F.pad(batch.input_ids, (left, 0)),
        F.pad(batch.attention_mask, (left, 0)),
        F.pad(batch.position_ids, (left, 0)),
        F.pad(batch.labels, (answer - batch.labels.shape[1], 0), value=UNTRAINED),
    )
    if not more:
        return wide
    copies = Batch(*(each[:1].expand(more, -1) for each in wide))
    copies = copies._replace(labels=torch.full_like(copies.labels, UNTRAINED))
    return Batch(*(torch.cat(pair) for pair in zip(wide, copies, strict=True)))
