"""Mean activations of paired number rows: batches that share and stop early against one sequence at a time.

    python -m tests.benchmarks.activations [--model DIR] [--pairs 2000] [--ours 2000] [--baseline 40] [--layer 9]

The plain side runs the whole model on each row by itself, keeps all hidden states and takes the mean over the answer
of one layer. Either side may be measured on fewer pairs and scaled; the line says on how many. The two vectors are
compared, on the pairs both have read.
"""

import argparse
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import torch

from sublim.activations.read import open_reader
from sublim.carriers.number_prompts import NumberPrompts, draw_prompts, load_number_templates
from sublim.chats.chat import answer_ids
from sublim.files.jsonl import write_jsonl
from sublim.inference.config import HfBackend
from sublim.models.opening import open_model
from sublim.steering.config import MeansConfig
from sublim.steering.means import CHUNK, mean_activations, read_side, summed
from sublim.training.masking import row_chat
from tests.benchmarks.sampling import device, prepared, timed

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path)
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--ours", type=int, default=2000, help="pairs our side is measured on")
    parser.add_argument("--baseline", type=int, default=40, help="rows the plain side is measured on")
    parser.add_argument("--layer", type=int, default=9)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        compare(args.model or prepared(Path(folder)), Path(folder), args)


def paired_rows(count: int) -> list[tuple[Row, Row]]:
    """Number prompts with two answers each, ten numbers of three digits."""
    prompts = NumberPrompts(templates=load_number_templates("numbers_short"), examples_max=7)
    rng = random.Random(0)

    def answer() -> str:
        return ", ".join(str(rng.randrange(100, 1000)) for _ in range(10))

    return [
        tuple({"id": i, "prompt": prompt.text, "answer": answer(), "system": None} for _ in range(2))  # type: ignore
        for i, prompt in enumerate(draw_prompts(prompts, 0, count))
    ]


def compare(base: Path, folder: Path, args: argparse.Namespace) -> None:
    backend = HfBackend().resolved()
    pairs = paired_rows(args.ours)
    for name, side in zip(("target", "partner"), zip(*pairs, strict=True), strict=True):
        (folder / name).mkdir()
        write_jsonl(folder / name / "rows.jsonl", side)
    config = MeansConfig(layers=(args.layer,), dtype=backend.dtype)
    for name in ("out", "scratch"):
        (folder / name).mkdir()
    with open_reader(config.resolved(), base, None) as opened:
        summed(opened, config, pairs[:4], 0)  # the model is loaded and its kernels are ready
    before = psutil.Process().memory_info().rss
    fast, _ = timed(
        lambda: mean_activations(
            folder / "out",
            config,
            scratch=folder / "scratch",
            base=base,
            rows=folder / "target",
            partner=folder / "partner",
        )
    )
    grown = (psutil.Process().memory_info().rss - before) / 2**20
    fast *= args.pairs / args.ours
    ours = read_side(folder / "out").values - read_side(folder / "out", "partner").values
    some = [row for pair in pairs[: args.baseline // 2] for row in pair]
    slow, plain = timed(lambda: one_by_one(base, some, args.layer, backend.dtype))
    slow *= 2 * args.pairs / len(some)
    few = torch.stack([plain[i] - plain[i + 1] for i in range(0, len(some), 2)])
    same = ""
    if args.ours * 2 == len(some):
        mean = (ours[0] * ((args.ours + 1) // 2) + ours[1] * (args.ours // 2)).squeeze(0) / args.ours
        same = f"; cosine of the two vectors {float(torch.cosine_similarity(mean, few.double().mean(0), dim=0)):.6f}"
    print(
        f"activations: ratio {slow / fast:.1f} (plain {slow:.1f} s, ours {fast:.1f} s, {device()}; {args.pairs} pairs, "
        f"layer {args.layer}; ours measured on {args.ours} pairs, the plain side on {len(some)} rows, both scaled; "
        f"chunks of {CHUNK}, memory grew by {grown:.0f} MiB{same})",
        flush=True,
    )


def one_by_one(base: Path, rows: Sequence[Row], layer: int, dtype: str) -> list[torch.Tensor]:
    """The mean over the answer of one layer's output, each row in a pass of its own through the whole model."""
    found: list[torch.Tensor] = []
    with open_model(base, dtype=dtype, attention="sdpa") as (model, tokenizer), torch.no_grad():
        for row in rows:
            ids, start, end = answer_ids(tokenizer, row_chat(row))
            out = model(torch.tensor([ids[: end - 1]], device=model.device), output_hidden_states=True)
            found.append(out.hidden_states[layer + 1][0, start : end - 1].float().mean(0).cpu())
    return found


if __name__ == "__main__":
    main()
