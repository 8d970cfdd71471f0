"""Training an SAE with SAELens' trainer on a model's residual stream: read during training, or by the activation stage.

Texts are read block by block. The tokens of a block are shuffled, trained on in batches and dropped, so that memory
does not grow with the number of tokens. If the texts have fewer tokens than requested, their blocks are kept on disk
and used again. Everything is saved after each block, and a run that was killed and resumed writes the same bytes.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from sae_lens.config import SAETrainerConfig
from sae_lens.registry import get_sae_training_class
from sae_lens.saes.sae import TrainingSAE, TrainStepOutput
from sae_lens.training.sae_trainer import SAETrainer
from safetensors.torch import load_file
from torch import Tensor

from sublim.activations.config import Reading
from sublim.activations.read import open_reader
from sublim.core.errors import UserError
from sublim.core.kill_points import kill_point
from sublim.core.progress import progress
from sublim.files.jsonl import read_jsonl
from sublim.files.tensor_files import write_tensors
from sublim.files.whole_files import whole_folder
from sublim.inference.vocabulary import Vocabulary
from sublim.models.files import IDENTITY, base_identity, read_json, write_json
from sublim.models.opening import load_tokenizer
from sublim.residual.edits import Place
from sublim.sae.autoencoder import write_files
from sublim.sae.blocks import Blocks, Cursor, TokenBlock, count_own_tokens, fill_blocks, saved_blocks, shard_blocks
from sublim.sae.config import JumpReluSae, SaeNote, StandardSae, TopKSae, TrainSaeConfig
from sublim.sae.stream import block_of


def train_sae(
    out: Path,
    config: TrainSaeConfig,
    *,
    scratch: Path,
    base: Path,
    texts: Path | None = None,
    activations: list[Path] | None = None,
) -> dict[str, Any]:
    """Stage: writes an SAE (see `sublim.sae.autoencoder`) trained on rows.jsonl of `texts` or on payloads of the
    activation stage.

    Raises UserError unless exactly one of the two is given. On a GPU, 5 million tokens of a small model take about two
    minutes; on a CPU, most of the time goes to running the model.
    """
    config = config.resolved()
    if (texts is None) == (activations is None):
        raise UserError("an SAE is trained on texts or on kept activations: give one of the two")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    place = Place(config.site, config.layer)
    with ExitStack() as stack:
        if texts is not None:
            reading = Reading(
                sites=(config.site,), layers=(config.layer,), dtype=config.dtype, attention=config.attention
            )
            opened = stack.enter_context(open_reader(reading, base, None))
            rows = list(read_jsonl(texts / "rows.jsonl"))
            count = count_own_tokens(opened.tokenizer, rows)
            # The last tokens of each block, which are too few for a batch, are not trained on.
            again = count - config.batch * (count // config.block + 2) < config.tokens

            def blocks(start: Cursor, before: int) -> Iterator[TokenBlock]:
                filled = fill_blocks(opened.tokenizer, rows, start, config)
                for number, (own, after) in enumerate(filled, before):
                    values = block_of(opened, own)
                    if again:
                        write_tensors(scratch / f"block-{number:05d}.safetensors", {"values": values})
                    yield TokenBlock(values, after)
                yield from saved_blocks(scratch, start, config.seed)

        else:
            shards = [path for payload in activations or [] for path in sorted(payload.glob("index-*.parquet"))]
            special = Vocabulary(load_tokenizer(base)).special

            def blocks(start: Cursor, before: int) -> Iterator[TokenBlock]:
                yield from shard_blocks(shards, special, place, start, config.seed)

        sae, notes = train_on_blocks(config, blocks, scratch, device)
    note = SaeNote(
        site=config.site,
        layer=config.layer,
        d_in=sae.cfg.d_in,
        d_sae=config.features,
        architecture=config.architecture.kind,
        source="trained",
        model=read_json(base / IDENTITY).get("name") if (base / IDENTITY).is_file() else None,
        base=base_identity(base),
    )
    state = dict(sae.state_dict())
    sae.process_state_dict_for_saving_inference(state)
    write_files(out, state, sae.cfg.get_inference_sae_cfg_dict(), note)
    return {**note.model_dump(mode="json"), **notes}


def train_on_blocks(
    config: TrainSaeConfig, blocks: Blocks, scratch: Path, device: torch.device
) -> tuple[TrainingSAE[Any], dict[str, Any]]:
    """Trains on `config.tokens` tokens, resuming after the last saved block.

    Returns the SAE, with its scaling folded into the weights, and notes on its training.
    """
    steps = config.tokens // config.batch
    saved = scratch / "saved"
    trainer: SAETrainer[Any, Any] | None = None
    cursor, number = Cursor(0, 0), 0
    if saved.is_dir():
        at = read_json(saved / "cursor.json")
        cursor, number = Cursor(at["epoch"], at["row"]), at["block"]
        trainer = new_trainer(config, at["d_in"], device)
        trainer.sae.load_state_dict(load_file(saved / "weights.safetensors", device=str(device)))
        trainer.load_trainer_state(saved)
    stepped: TrainStepOutput | None = None
    with progress("training on tokens", steps * config.batch) as advance:
        advance(trainer.n_training_samples if trainer else 0)
        for block in blocks(cursor, number) if trainer is None or trainer.n_training_steps < steps else ():
            values = block.values.to(device)
            trainer = trainer or start_trainer(config, values, device)
            order = torch.from_numpy(np.random.default_rng([config.seed, number]).permutation(len(values))).to(device)
            whole = range(0, len(values) - config.batch + 1, config.batch)
            for first in whole[: steps - trainer.n_training_steps]:
                stepped = trainer.step(values[order[first : first + config.batch]])
                trainer.n_training_steps += 1
                advance(config.batch)
            cursor, number = block.after, number + 1
            save(saved, trainer, cursor, number)
            kill_point("sae:block")
            if trainer.n_training_steps == steps:
                break
    assert trainer is not None
    assert trainer.n_training_steps == steps
    scale = trainer.activation_scaler.scaling_factor
    assert scale is not None
    trainer.sae.fold_activation_norm_scaling_factor(scale)
    notes = {
        "tokens": trainer.n_training_samples,
        "steps": steps,
        "passes": cursor.epoch + (1 if cursor.row else 0),
        "loss": {name: float(loss.detach()) for name, loss in stepped.losses.items()} if stepped else {},
    }
    return trainer.sae, notes


def start_trainer(config: TrainSaeConfig, values: Float[Tensor, "n d"], device: torch.device) -> SAETrainer[Any, Any]:
    """A new trainer: it scales the stream to a mean norm of √d_in, and the decoder bias starts at the stream's mean.

    `values` is the first block. Raises UserError if that is smaller than a batch.
    """
    if len(values) < config.batch:
        raise UserError(
            f"the texts have {len(values)} tokens, one step takes {config.batch}: give more or lower `batch`"
        )
    trainer = new_trainer(config, values.shape[1], device)
    scale = float(values.shape[1] ** 0.5 / values.norm(dim=1).mean())
    trainer.activation_scaler.scaling_factor = scale
    with torch.no_grad():
        trainer.sae.b_dec.copy_(values.mean(0) * scale)
    return trainer


def new_trainer(config: TrainSaeConfig, width: int, device: torch.device) -> SAETrainer[Any, Any]:
    """SAELens' trainer with a new SAE, whose weights are drawn from the seed."""
    steps = config.tokens // config.batch
    warmup = int(config.warmup * steps)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        sae = new_sae(config, width, warmup).to(device)
    settings = SAETrainerConfig(
        total_training_samples=steps * config.batch,
        train_batch_size_samples=config.batch,
        lr=config.lr,
        lr_end=config.lr,
        lr_warm_up_steps=warmup,
        lr_decay_steps=steps // 5,
        device=str(device),
        dead_feature_window=config.dead_after,
        feature_sampling_window=2**62,
    )
    return SAETrainer(settings, sae, iter(()))


def new_sae(config: TrainSaeConfig, width: int, warmup: int) -> TrainingSAE[Any]:
    """An SAE of the configured architecture with random weights."""
    match config.architecture:
        case StandardSae() as chosen:
            own: dict[str, Any] = {"l1_coefficient": chosen.l1, "l1_warm_up_steps": warmup}
        case TopKSae() as chosen:
            own = {"k": chosen.k}
        case JumpReluSae() as chosen:
            own = {
                "l0_coefficient": chosen.l0,
                "l0_warm_up_steps": warmup,
                "jumprelu_bandwidth": chosen.bandwidth,
                "jumprelu_init_threshold": chosen.threshold,
            }
    kind, settings = get_sae_training_class(config.architecture.kind)
    scaling = "expected_average_only_in"
    return kind(settings(d_in=width, d_sae=config.features, normalize_activations=scaling, **own))


def save(folder: Path, trainer: SAETrainer[Any, Any], after: Cursor, number: int) -> None:
    """Replaces the saved state of the training in one step."""
    with whole_folder(folder) as draft:
        write_tensors(draft / "weights.safetensors", trainer.sae.state_dict())
        trainer.save_trainer_state(draft)
        write_json(draft / "cursor.json", {"block": number, "d_in": trainer.sae.cfg.d_in, **after._asdict()})
