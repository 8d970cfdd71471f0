"""SAE features of number rows: batches that stop early and keep what is not zero, against one prompt at a time, dense.

    python -m tests.benchmarks.features [--model DIR] [--prompts 2000] [--ours 2000] [--baseline 40] [--layer 9]
    python -m tests.benchmarks.features --memory 10000

The plain side runs the whole model on each prompt by itself, keeps all hidden states, encodes the answer's last token
and keeps all features, zeros too, as float32. Either side may be measured on fewer prompts and scaled; the line says on
how many. The SAE has random weights and a threshold that lets about 100 of its 16,384 features fire. The features of
both sides are compared with each other and, where the model runs in bfloat16, with the plain side's in float32: a
feature near its threshold fires on one side and not on the other, at half the largest value at once, so that rounding
of the model alone parts the two sides, and ours should be as far from float32 as the plain one. --memory encodes every
answer token in three layers and tells the most memory in use, for all rows and for a tenth of them.
"""

import argparse
import tempfile
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
import psutil
import torch
from jaxtyping import Float
from sae_lens import SAE
from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
from sae_lens.saes.sae import SAEMetadata

from sublim.activations.config import Reading
from sublim.activations.read import open_reader
from sublim.chats.chat import answer_ids
from sublim.features.config import EncodeConfig
from sublim.features.encode import encode_features
from sublim.files.jsonl import write_jsonl
from sublim.inference.config import HfBackend
from sublim.models.opening import open_model
from sublim.sae.autoencoder import load_sae, note_from_config, write_sae
from sublim.sae.stream import OwnTokens, block_of, own_rows
from sublim.training.masking import row_chat
from tests.benchmarks.activations import paired_rows
from tests.benchmarks.sampling import device, prepared, timed

FEATURES = 16_384
FIRE = 100
Row = dict[str, Any]
Dense = Float[np.ndarray, "n f"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path)
    parser.add_argument("--prompts", type=int, default=2000)
    parser.add_argument("--ours", type=int, default=2000, help="prompts our side is measured on")
    parser.add_argument("--baseline", type=int, default=40, help="prompts the plain side is measured on")
    parser.add_argument("--layer", type=int, default=9)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of the model; by default the device's own")
    parser.add_argument("--memory", type=int, help="rows to encode in three layers; nothing else is measured")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = args.model or prepared(folder)
        dtype = args.dtype or HfBackend().resolved().dtype
        if args.memory:
            flat(base, folder, args.memory, dtype)
        else:
            compare(base, folder, args, dtype)


def rows_of(count: int) -> list[Row]:
    """Number prompts, each with an answer."""
    return [pair[0] for pair in paired_rows(count)]


def random_sae(base: Path, folder: Path, layer: int, dtype: str) -> Path:
    """A payload of a random SAE whose threshold is a quantile of what it sees on some rows."""
    reading = Reading.model_validate({"layers": (layer,), "dtype": dtype}).resolved()
    with open_reader(reading, base, None) as opened:
        rows = own_rows(opened.tokenizer, rows_of(24))
        stream = block_of(opened, [OwnTokens(row.marked, row.places[-4:]) for row in rows])
    metadata = SAEMetadata(hook_name=f"blocks.{layer}.hook_resid_post")
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(layer)
        sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=stream.shape[1], d_sae=FEATURES, metadata=metadata))
        sae.b_dec.copy_(stream.mean(0))
        seen = ((stream - stream.mean(0)) @ sae.W_enc).flatten()
        sae.threshold.fill_(float(seen.topk(FIRE * len(stream)).values[-1]))
    folder.mkdir(parents=True)
    write_sae(folder, cast(SAE[Any], sae), note_from_config(cast(SAE[Any], sae), "random"))
    return folder


def encoded(base: Path, folder: Path, rows: list[Row], config: EncodeConfig, saes: dict[str, Path]) -> Path:
    """What the stage writes."""
    for name in ("rows", "out", "scratch"):
        (folder / name).mkdir(parents=True)
    write_jsonl(folder / "rows/rows.jsonl", rows)
    encode_features(folder / "out", config, scratch=folder / "scratch", base=base, rows=folder / "rows", saes=saes)
    return folder / "out"


def dense_of(payload: Path, name: str, rows: int) -> Dense:
    """The first rows of a payload of the stage, with their zeros."""
    table = pl.read_parquet(payload / f"features-{name}-*.parquet").filter(pl.col("row") < rows)
    made = np.zeros((rows, FEATURES), np.float32)
    made[table["row"].to_numpy(), table["feature"].to_numpy()] = table["value"].to_numpy()
    return made


def apart(name: str, ours: Dense, theirs: Dense) -> str:
    """How far two sides' features are from each other: which fire, and with what value."""
    both, either = (ours > 0) & (theirs > 0), (ours > 0) | (theirs > 0)
    error = float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))
    value = float(np.linalg.norm((ours - theirs)[both]) / np.linalg.norm(theirs[both]))
    largest = float(np.abs(ours - theirs)[both].max() / theirs.max())
    return (
        f"{name}: both fire in {100 * both.sum() / either.sum():.2f} % of the pairs (prompt, feature) where one does; "
        f"relative L2 error {100 * value:.2f} % there (at most {100 * largest:.2f} % of the largest value) and "
        f"{100 * error:.2f} % over all"
    )


def one_by_one(base: Path, rows: list[Row], sae: Path, layer: int, dtype: str, out: Path) -> None:
    """Dense features of each row's last answer token, written to one file."""
    found: list[np.ndarray[Any, Any]] = []
    with open_model(base, None, dtype=dtype, attention="sdpa") as (model, tokenizer):
        loaded = load_sae(sae, model.device)
        for row in rows:
            ids, _, end = answer_ids(tokenizer, row_chat(row))
            with torch.no_grad():
                states = model(torch.tensor([ids[: end - 1]], device=model.device), output_hidden_states=True)
                features = loaded.encode(states.hidden_states[layer + 1][0, -1:].float())
            found.append(features[0].cpu().numpy())
    np.save(out, np.stack(found))


def size(folder: Path) -> int:
    """Bytes of a payload."""
    return sum(path.stat().st_size for path in folder.iterdir())


def compare(base: Path, folder: Path, args: argparse.Namespace, dtype: str) -> None:
    name = f"resid_post-{args.layer}"
    sae, rows = random_sae(base, folder / "sae", args.layer, dtype), rows_of(args.ours)
    config = EncodeConfig.model_validate({"tokens": "last", "dtype": dtype})
    encoded(base, folder / "warm", rows[:4], config, {name: sae})  # the model is loaded, its kernels are ready
    fast, payload = timed(lambda: encoded(base, folder / "ours", rows, config, {name: sae}))
    dense = folder / "dense.npy"
    one_by_one(base, rows[:2], sae, args.layer, dtype, dense)
    slow, _ = timed(lambda: one_by_one(base, rows[: args.baseline], sae, args.layer, dtype, dense))
    entries = pl.read_parquet(payload / f"entries-{name}-*.parquet")
    ours, theirs = dense_of(payload, name, args.baseline), np.load(dense)
    fast, slow = fast * args.prompts / args.ours, slow * args.prompts / args.baseline
    small, large = size(payload) * args.prompts / args.ours, args.prompts * FEATURES * 4
    print(
        f"features: ratio {slow / fast:.1f} (plain {slow:.1f} s on {args.baseline} prompts, ours {fast:.1f} s on "
        f"{args.ours}, both for {args.prompts}, {device()}); L0 {entries['active'].mean():.0f}"
    )
    print(apart(f"features, ours against plain, {dtype}", ours, theirs))
    if dtype != "float32":
        one_by_one(base, rows[: args.baseline], sae, args.layer, "float32", dense)
        exact = np.load(dense)
        for side, found in (("ours", ours), ("plain", theirs)):
            print(apart(f"features, {side} in {dtype} against plain in float32", found, exact))
    print(
        f"features on disk: ratio {large / small:.1f} (plain {large / 2**20:.1f} MiB, ours {small / 2**20:.2f} MiB, "
        f"for {args.prompts} prompts at {FEATURES} features, {device()})"
    )


@contextmanager
def watched() -> Generator[list[int]]:
    """Resident memory of this process, ten times a second."""
    seen, done = list[int](), threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            seen.append(psutil.Process().memory_info().rss)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()


def flat(base: Path, folder: Path, count: int, dtype: str) -> None:
    layers = (9, 14, 20)
    saes = {f"resid_post-{layer}": random_sae(base, folder / f"sae-{layer}", layer, dtype) for layer in layers}
    config = EncodeConfig.model_validate({"tokens": "all", "dtype": dtype})
    with watched() as few:
        encoded(base, folder / "few", rows_of(count // 10), config, saes)
    with watched() as many:
        seconds, payload = timed(lambda: encoded(base, folder / "all", rows_of(count), config, saes))
    print(
        f"features memory: at most {max(many) / 2**20:.0f} MiB for {count} rows × {len(layers)} layers, every answer "
        f"token, {max(few) / 2**20:.0f} MiB for a tenth of them; {size(payload) / 2**20:.0f} MiB on disk, "
        f"{seconds:.1f} s, {device()}"
    )


if __name__ == "__main__":
    main()
