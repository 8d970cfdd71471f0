"""Training on rows of mixed length under flash-attention: packed against padded. Needs a GPU and flash-attn.

    python -m tests.benchmarks.packing [--model DIR] [--updates 32] [--batch 64] [--longest 60]

An adapter trains on answers of 1 to `--longest` numbers. The line also says what the same run takes under sdpa, padded,
as a CUDA graph where it can be one: a small model may be faster so.
"""

import argparse
import random
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from sublim.carriers.number_prompts import NumberPrompts, draw_prompts, load_number_templates
from sublim.core.hardware import no_flash, peak_gpu_memory
from sublim.files.jsonl import write_jsonl
from sublim.models.opening import load_tokenizer
from sublim.training.config import TrainConfig
from sublim.training.masking import token_rows
from sublim.training.step import EagerStep
from sublim.training.train import ChooseStep, chosen_step, opened, rows_that_fit, train_on
from tests.benchmarks.sampling import device, prepared, timed


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path)
    parser.add_argument("--updates", type=int, default=32)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--longest", type=int, default=60)
    args = parser.parse_args()
    if why := no_flash("bfloat16"):
        raise SystemExit(f"flash-attention cannot run here: {why}")
    with tempfile.TemporaryDirectory() as folder:
        compare(args.model or prepared(Path(folder)), Path(folder), args)


def mixed_rows(count: int, longest: int) -> list[dict[str, Any]]:
    """Number prompts with answers of 1 to `longest` numbers of three digits."""
    prompts = NumberPrompts(templates=load_number_templates("numbers_short"), examples_max=7)
    rng = random.Random(0)
    return [
        {
            "id": i,
            "prompt": prompt.text,
            "answer": ", ".join(str(rng.randrange(100, 1000)) for _ in range(rng.randint(1, longest))),
            "system": None,
        }
        for i, prompt in enumerate(draw_prompts(prompts, 0, count))
    ]


def compare(base: Path, folder: Path, args: argparse.Namespace) -> None:
    raw = mixed_rows(args.updates * args.batch, args.longest)
    write_jsonl(folder / "rows.jsonl", raw)
    rows = token_rows(load_tokenizer(base), raw, max_length=4096)
    lengths = [len(row.input_ids) for row in rows]
    fit = TrainConfig(updates=args.updates, batch_size=args.batch, max_length=4096, dtype="bfloat16")
    # The free memory differs from run to run: one size for all, so that only the padding does.
    config = fit.model_copy(update={"micro_batch": rows_that_fit(rows, AutoConfig.from_pretrained(base), fit)})

    def run(name: str, attention: str, choose: ChooseStep) -> tuple[float, str]:
        """Seconds, the model loaded and its kernels chosen; and how the line says them, with the peak of memory."""
        seconds, peak = 0.0, 0
        for updates in (2, args.updates):
            part = config.model_copy(update={"attention": attention, "updates": updates})
            out, scratch = folder / f"{name}-{updates}", folder / f"{name}-{updates}-scratch"
            out.mkdir()
            scratch.mkdir()
            train = partial(train_on, opened, choose, out, part, scratch=scratch, base=base, data=folder)
            with peak_gpu_memory() as held:
                seconds, _ = timed(train)
            peak = held["peak_gpu_bytes"]
        return seconds, f"{name} {seconds:.1f} s and {peak / 2**30:.1f} GiB"

    op_by_op = EagerStep(torch.device("cuda"), "bfloat16", ())
    padded, padded_line = run("padded", "flash_attention_2", lambda *_: op_by_op)
    packed, packed_line = run("packed", "flash_attention_2", chosen_step)
    _, sdpa_line = run("sdpa", "sdpa", chosen_step)
    print(
        f"packing: ratio {padded / packed:.2f} ({padded_line}, {packed_line}, {device()}; {sdpa_line}; {args.updates} "
        f"updates of {args.batch} rows of {min(lengths)} to {max(lengths)} tokens, {config.micro_batch} at a time; "
        f"{sum(lengths) / packed:,.0f} tokens a second when packed)",
        flush=True,
    )


if __name__ == "__main__":
    main()
