"""The quality of an SAE: explained variance, active features, and the model's loss with the reconstruction put in.

The loss is that of the next token, wherever both tokens are own tokens (see `sublim.sae.stream`). The stream at own
tokens is left unchanged, or replaced by its reconstruction, by zeros or by its mean; elsewhere it is never changed.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from sublim.core.errors import UserError
from sublim.core.progress import progress
from sublim.files.jsonl import read_jsonl
from sublim.memory import fitting
from sublim.models.files import write_json
from sublim.models.opening import open_model
from sublim.residual.hooks import attached_at, check_layers
from sublim.sae.autoencoder import LoadedSae, check_sae, load_sae, read_note
from sublim.sae.config import Quality, QualityConfig
from sublim.sae.stream import OwnTokens, own_rows

AT_ONCE = 4096
"""Tokens that are encoded together."""


class PaddedTexts(NamedTuple):
    """A batch of texts, padded on the right; `own` marks own tokens."""

    ids: Int[Tensor, "b t"]
    mask: Bool[Tensor, "b t"]
    own: Bool[Tensor, "b t"]


def measure_sae(
    out: Path, config: QualityConfig, *, scratch: Path, base: Path, sae: Path, texts: Path
) -> dict[str, Any]:
    """Stage: writes quality.json (`Quality`) from held_out.jsonl of `texts`. Costs five forward passes of the model."""
    config = config.resolved()
    check_sae(read_note(sae), base)
    rows = list(read_jsonl(texts / "held_out.jsonl"))
    # flash-attention does not take padded batches.
    attention = "sdpa" if config.attention == "flash_attention_2" else config.attention
    with open_model(base, None, dtype=config.dtype, attention=attention) as (model, tokenizer):
        loaded = load_sae(sae, model.device)
        own = rows_with_tokens(own_rows(tokenizer, rows), config.tokens)
        fit = fitting.MemoryFit("texts", "take dtype bfloat16, shorter texts or a smaller model")
        found = fit.whole(min(config.chunk, len(own)), lambda chunk: quality(model, loaded, own, chunk))
    write_json(out / "quality.json", found.model_dump(mode="json"))
    return found.model_dump(mode="json")


def rows_with_tokens(rows: Sequence[OwnTokens], tokens: int) -> list[OwnTokens]:
    """The first rows that together have at least `tokens` own tokens, or all.

    Raises UserError if no row has two own tokens.
    """
    measurable = [row for row in rows if len(row.places) > 1]
    before = accumulate((len(row.places) for row in measurable), initial=0)
    chosen = [row for row, count in zip(measurable, before, strict=False) if count < tokens]
    if not chosen:
        raise UserError("no held-out text has two tokens to measure: hold more texts out")
    return chosen


@torch.no_grad()
def quality(model: PreTrainedModel, sae: LoadedSae, rows: Sequence[OwnTokens], chunk: int) -> Quality:
    """Measures an SAE on rows, `chunk` of them at a time."""
    check_layers(model, [sae.note.layer])
    ordered = sorted(rows, key=lambda row: len(row.marked.ids))
    parts = [pad_rows(ordered[at : at + chunk], model.device) for at in range(0, len(ordered), chunk)]
    with progress("measuring the SAE", 5 * len(parts)) as advance:
        mean_stream, fit = measure_reconstruction(model, sae, parts, advance)

        def spliced(stream: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
            return sae.reconstruct(stream, sae.encode(stream))

        losses = [
            loss(model, sae, parts, change, advance)
            for change in (None, spliced, torch.zeros_like, mean_stream.expand_as)
        ]
    clean, put_in, zero, mean = losses
    return Quality(
        site=sae.note.site,
        layer=sae.note.layer,
        d_sae=sae.note.d_sae,
        **fit,
        ce=clean,
        ce_spliced=put_in,
        ce_zero=zero,
        ce_mean=mean,
        ce_recovered=(zero - put_in) / (zero - clean),
        ce_recovered_mean=(mean - put_in) / (mean - clean),
    )


def pad_rows(rows: Sequence[OwnTokens], device: torch.device) -> PaddedTexts:
    """Pads rows to one batch."""
    texts = [torch.tensor(row.marked.ids) for row in rows]
    ids = pad_sequence(texts, batch_first=True)
    mask = pad_sequence([torch.ones_like(text, dtype=torch.bool) for text in texts], batch_first=True)
    own = torch.zeros_like(mask)
    for number, row in enumerate(rows):
        own[number, row.places] = True
    return PaddedTexts(ids.to(device), mask.to(device), own.to(device))


def measure_reconstruction(
    model: PreTrainedModel, sae: LoadedSae, parts: Sequence[PaddedTexts], advance: Callable[[int], None]
) -> tuple[Float[Tensor, " d"], dict[str, Any]]:
    """The mean of the stream over all tokens, and the fields of `Quality` on how well the reconstruction fits it.

    Sums are float64, because the variance is a small difference of large numbers.
    """
    width = sae.note.d_in
    total = torch.zeros(width, dtype=torch.float64, device=model.device)
    squares = error = active = 0.0
    fired, count = torch.zeros(sae.note.d_sae, dtype=torch.bool, device=model.device), 0
    for values in own_streams(model, sae, parts):
        advance(1)
        for some in values.split(AT_ONCE):
            features = sae.encode(some)
            error += float((some - sae.reconstruct(some, features)).double().square().sum())
            active += float((features > 0).sum())
            fired |= (features > 0).any(0)
            total += some.double().sum(0)
            squares += float(some.double().square().sum())
            count += len(some)
    mean = total / count
    variance = squares - count * float(mean.square().sum())
    dead = 1 - float(fired.float().mean())
    found = {"tokens": count, "explained_variance": 1 - error / variance, "l0": active / count, "dead": dead}
    return mean.float(), found


def own_streams(model: PreTrainedModel, sae: LoadedSae, parts: Sequence[PaddedTexts]) -> Iterator[Float[Tensor, "n d"]]:
    """Yields the stream at own tokens for each batch, in float32."""
    for part in parts:
        streams: list[Tensor] = []
        with attached_at(model, sae.note.place, streams.append):
            forward(model, part)
        yield streams[0][part.own].float()


def loss(
    model: PreTrainedModel,
    sae: LoadedSae,
    parts: Sequence[PaddedTexts],
    change: Callable[[Float[Tensor, "n d"]], Float[Tensor, "n d"]] | None,
    advance: Callable[[int], None],
) -> float:
    """Mean loss of the next token, in nats, with `change` applied to the stream at own tokens."""
    total, count = 0.0, 0
    for part in parts:

        def replace(stream: Float[Tensor, "b t d"], part: PaddedTexts = part) -> Float[Tensor, "b t d"] | None:
            if change is None:
                return None
            changed = stream.clone()
            changed[part.own] = change(stream[part.own].float()).to(stream.dtype)
            return changed

        with attached_at(model, sae.note.place, replace):
            logits = forward(model, part)
        counted = part.own[:, :-1] & part.own[:, 1:]
        total += float(cross_entropy(logits[:, :-1][counted].float(), part.ids[:, 1:][counted], reduction="sum"))
        count += int(counted.sum())
        advance(1)
    return total / count


def forward(model: PreTrainedModel, part: PaddedTexts) -> Float[Tensor, "b t v"]:
    """The logits for a batch of padded texts."""
    return model(input_ids=part.ids, attention_mask=part.mask.long(), use_cache=False).logits
