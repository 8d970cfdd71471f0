"""Steering vectors by gradient descent: a vector added to a frozen model's stream is trained to make answers likely."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from sublim.core.errors import UserError
from sublim.core.kill_points import kill_point
from sublim.core.progress import progress
from sublim.files.jsonl import read_jsonl, write_jsonl
from sublim.files.tensor_files import write_tensors
from sublim.memory.fitting import MemoryFit
from sublim.models.files import base_identity
from sublim.models.opening import open_model
from sublim.residual.edits import Place, VectorNote
from sublim.residual.hooks import attached_at, check_layers
from sublim.residual.vectors import Vector, noted
from sublim.steering.config import TrainVectorConfig
from sublim.steering.means import write_with_random
from sublim.training.masking import UNTRAINED, Batch, TokenRow, label_count, micro_batches, token_rows
from sublim.training.step import summed_loss


class Trained(NamedTuple):
    """A trained vector, the mean norm of the stream at its place, and the loss before each update and at the end."""

    values: Float[Tensor, " d"]
    norm: Float[Tensor, ""]
    losses: Float[Tensor, " u"]


def train_vector(out: Path, config: TrainVectorConfig, *, scratch: Path, base: Path, data: Path) -> dict[str, Any]:
    """Stage: writes vectors.safetensors with a trained vector for each layer and its random controls, and
    training.jsonl {vector, update, loss}, with losses in nats for each answer token.

    For each layer the cost is updates x batch_size rows, forward through all blocks and backward to the layer. After a
    crash, finished layers are not repeated.
    """
    config = config.resolved()
    made, losses = dict[str, Vector](), dict[str, list[float]]()
    with (
        open_model(base, dtype=config.dtype, attention=config.attention) as (model, tokenizer),
        progress("training vectors", len(config.layers) * config.updates) as advance,
    ):
        check_layers(model, config.layers)
        rows = token_rows(tokenizer, read_jsonl(data / "rows.jsonl"), max_length=config.max_length)
        if not rows:
            raise UserError("there are no rows to train the vector on: give a file with rows")
        padding = int(tokenizer.pad_token_id)  # pyright: ignore[reportArgumentType]
        for layer in config.layers:
            name, path = f"{config.site}/{layer}/trained", scratch / f"layer-{layer}.safetensors"
            if not path.exists():
                write_tensors(path, optimised(model, Place(config.site, layer), rows, config, padding)._asdict())
                kill_point("vector:layer")
            trained = Trained(**load_file(path))
            note = VectorNote(
                site=config.site,
                layer=layer,
                source="trained",
                norm=0.0,
                residual_norm=float(trained.norm),
                rows=len(rows),
                base=base_identity(base),
            )
            made[name], losses[name] = noted(trained.values, note), trained.losses.tolist()
            advance(config.updates)
    write_with_random(out, made, config)
    write_jsonl(
        out / "training.jsonl",
        ({"vector": name, "update": i, "loss": loss} for name, own in losses.items() for i, loss in enumerate(own)),
    )
    return {"losses": {name: [own[0], own[-1]] for name, own in losses.items()}}


def optimised(
    model: PreTrainedModel, place: Place, rows: list[TokenRow], config: TrainVectorConfig, padding: int
) -> Trained:
    """Trains a vector, from zeros, with Adam on the mean loss of the answer tokens of each batch."""
    rng = np.random.default_rng(config.seed)
    order = np.concatenate(
        [rng.permutation(len(rows)) for _ in range(-(-config.updates * config.batch_size // len(rows)))]
    )
    first = [rows[i] for i in order[: config.batch_size]]
    fit = MemoryFit(
        "rows of a micro-batch", "micro_batch is 1 already, so take dtype bfloat16, shorter rows or a smaller model"
    )
    length = fit.whole(
        config.micro_batch, lambda size: stream_length(model, place, micro_batches(first, size, padding=padding))
    )
    width = model.config.get_text_config().hidden_size
    vector = torch.zeros(width, device=model.device, requires_grad=True)
    optimizer = torch.optim.Adam([vector], lr=config.lr * length / width**0.5)
    losses: list[float] = []

    def backward(chosen: list[TokenRow]) -> float:
        return fit.whole(
            min(config.micro_batch, len(chosen)), lambda size: _backward(model, place, vector, chosen, size, padding)
        )

    for update in range(config.updates):
        chosen = [rows[i] for i in order[update * config.batch_size : (update + 1) * config.batch_size]]
        losses.append(backward(chosen))
        optimizer.step()
        optimizer.zero_grad()
        if config.max_norm is not None:
            with torch.no_grad():
                vector *= min(1.0, config.max_norm * length / float(vector.norm()))
    losses.append(backward(first))
    return Trained(vector.detach().cpu(), torch.tensor(length), torch.tensor(losses))


def _backward(
    model: PreTrainedModel,
    place: Place,
    vector: Tensor,
    rows: list[TokenRow],
    size: int,
    padding: int,
) -> float:
    """The mean loss over the batch's label tokens; sets the vector's gradient, `size` rows at a time."""
    count, total, vector.grad = label_count(rows), 0.0, None
    for batch in micro_batches(rows, size, padding=padding):
        on_device = batch.to(model.device)
        with attached_at(model, place, lambda stream: (stream.float() + vector).to(stream.dtype)):
            loss = summed_loss(model, on_device, ()) / count
        loss.backward()
        total += float(loss.detach())
    return total


def stream_length(model: Any, place: Place, batches: list[Batch]) -> float:
    """Mean norm of the stream at the answer tokens."""
    lengths: list[Tensor] = []
    for batch in batches:
        streams: list[Tensor] = []
        on_device = batch.to(model.device)
        with attached_at(model, place, streams.append), torch.no_grad():
            model(
                input_ids=on_device.input_ids,
                attention_mask=on_device.attention_mask,
                position_ids=on_device.position_ids,
                logits_to_keep=1,
                use_cache=False,
            )
        answer = on_device.labels != UNTRAINED
        lengths.append(streams[0][:, -answer.shape[1] :].float().norm(dim=-1)[answer])
    return float(torch.cat(lengths).mean())
