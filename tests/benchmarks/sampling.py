"""Sampling number prompts: in batches against one sequence at a time, and how many a second with start-up included.

    python -m tests.benchmarks.sampling [--model DIR] [--prompts N] [--baseline 30] [--throughput N] [--profile N]

Without --model the bundled model is prepared first (not timed). The plain side is `generate`, one sequence at a time
on `--baseline` of the same requests, scaled to all of them. `--throughput` starts a new process that imports, loads,
samples and writes its rows, timed from its start to its end; on a GPU it is set against `generate` in batches of 1,024.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sublim.backends.opening import open_sampler
from sublim.carriers.number_prompts import NumberPrompts, draw_prompts, load_number_templates
from sublim.chats.chat import Chat, chat, render_ids
from sublim.core.hardware import gpu
from sublim.inference.config import HfBackend, NumberFormat, SamplingParams

FREE = SamplingParams(max_tokens=50)
FORCED = SamplingParams(max_tokens=48)


def device() -> str:
    # Not asked at import: the driver takes some tenths of a second, which the timed child spends importing torch.
    return card.name if (card := gpu()) else "cpu"


def number_chats(n: int) -> list[Chat]:
    prompts = NumberPrompts(templates=load_number_templates("numbers_short"), examples_max=7)
    return [chat(prompt.text) for prompt in draw_prompts(prompts, 0, n)]


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def generate(base: Path, chats: list[Chat], batch: int, *, full: bool) -> tuple[float, float]:
    """Seconds and tokens an answer of transformers' own sampling; `full` keeps it from ending an answer early."""
    import torch

    from sublim.models.opening import open_model

    backend = HfBackend().resolved()
    with open_model(base, dtype=backend.dtype, attention="sdpa") as (model, tokenizer), torch.no_grad():
        prompts = [render_ids(tokenizer, one) for one in chats]
        written = 0

        def all_batches() -> None:
            nonlocal written
            for at in range(0, len(prompts), batch):
                part = prompts[at : at + batch]
                width = max(map(len, part))
                ids = torch.tensor([[tokenizer.pad_token_id] * (width - len(one)) + one for one in part])
                mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in part])
                out = model.generate(
                    ids.to(model.device),
                    attention_mask=mask.to(model.device),
                    do_sample=True,
                    max_new_tokens=FORCED.max_tokens if full else FREE.max_tokens,
                    min_new_tokens=FORCED.max_tokens if full else None,
                )
                written += int((out[:, width:] != tokenizer.pad_token_id).sum())

        torch.manual_seed(0)
        model.generate(torch.tensor([prompts[0]], device=model.device), max_new_tokens=2)
        return timed(all_batches)[0], written / len(prompts)


def ours(base: Path, chats: list[Chat], *, full: bool) -> tuple[float, float]:
    with open_sampler(HfBackend(), base) as sampler:
        sampler.sample(chats[:1], FREE)
        seconds, answers = timed(
            lambda: sampler.sample(chats, FORCED if full else FREE, constraint=NumberFormat() if full else None)
        )
    return seconds, sum(len(answer.token_ids) for [answer] in answers) / len(chats)


def compare(base: Path, prompts: int, baseline: int, *, full: bool) -> None:
    chats = number_chats(prompts)
    fast, our_tokens = ours(base, chats, full=full)
    # Every k-th request, so that the baseline's prompts are as long as all of them are.
    some = chats[:: max(1, prompts // baseline)][:baseline]
    slow, plain_tokens = generate(base, some, 1, full=full)
    slow *= prompts / len(some)
    name = "sampling_constrained" if full else "sampling"
    print(
        f"{name}: ratio {slow / fast:.1f} (plain {slow:.1f} s, ours {fast:.1f} s, {device()}; {prompts} requests, the "
        f"plain side measured one at a time on {len(some)} of them and scaled; {plain_tokens:.1f} and "
        f"{our_tokens:.1f} tokens an answer)",
        flush=True,
    )


def child(base: Path, prompts: int, out: Path) -> None:
    began = time.perf_counter()
    with open_sampler(HfBackend(), base) as sampler:
        opened = time.perf_counter()
        answers = sampler.sample(number_chats(prompts), FORCED, constraint=NumberFormat())
        out.write_text("".join(json.dumps({"answer": answer.text}) + "\n" for [answer] in answers), encoding="utf-8")
        sampled = time.perf_counter()
    print(json.dumps({"import and load": opened - began, "sample": sampled - opened}))


def throughput(base: Path, prompts: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows.jsonl"
        command = [sys.executable, "-m", "tests.benchmarks.sampling", "--model", str(base), "--child", str(out)]
        seconds, done = timed(
            lambda: subprocess.run([*command, "--prompts", str(prompts)], check=True, stdout=subprocess.PIPE, text=True)
        )
        assert len(set(out.read_text().splitlines())) > 0.9 * prompts
    parts = json.loads(done.stdout.splitlines()[-1])
    told = ", ".join(f"{name} {spent:.2f} s" for name, spent in parts.items())
    print(
        f"throughput: {prompts / seconds:.0f} prompts/s ({prompts} in {seconds:.2f} s from the process's start to its "
        f"end: {told}; {device()})",
        flush=True,
    )
    if gpu() is not None:
        batch, _ = generate(base, number_chats(1024), 1024, full=True)
        plain = batch * prompts / 1024 + seconds - parts["sample"]
        print(
            f"throughput_ratio: ratio {plain / seconds:.1f} (plain {plain:.1f} s, ours {seconds:.1f} s, {device()}; "
            "plain is generate on one batch of 1,024, scaled, plus the same start-up)",
            flush=True,
        )


def profile(base: Path, prompts: int) -> None:
    """Where the time of a second call goes."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiled

    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu() else [])]
    chats = number_chats(prompts)
    with open_sampler(HfBackend(), base) as sampler:

        def call() -> None:
            sampler.sample(chats, FORCED, constraint=NumberFormat())

        for turn in ("first", "second"):
            print(f"{turn} call: {timed(call)[0]:.2f} s for {prompts} prompts ({device()})", flush=True)
        with profiled(activities=kinds) as table:
            call()
    sort = "self_device_time_total" if gpu() else "self_cpu_time_total"
    print(table.key_averages().table(sort_by=sort, row_limit=25, max_name_column_width=60))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path)
    parser.add_argument("--prompts", type=int)
    parser.add_argument("--baseline", type=int, default=30)
    parser.add_argument("--throughput", type=int)
    parser.add_argument("--child", type=Path)
    parser.add_argument("--profile", type=int, default=0)
    args = parser.parse_args()
    if args.child:
        child(args.model, args.prompts, args.child)
        return
    with tempfile.TemporaryDirectory() as folder:
        base = args.model or prepared(Path(folder))
        prompts = args.prompts or (10_000 if gpu() else 64)
        if args.profile:
            profile(base, args.profile)
            return
        if counted := (10_000 if gpu() else 0) if args.throughput is None else args.throughput:
            throughput(base, counted)
        compare(base, prompts, args.baseline, full=True)
        compare(base, prompts, args.baseline, full=False)


def prepared(folder: Path) -> Path:
    """The bundled model in `folder`."""
    from sublim.bases.prepare import prepare_model
    from sublim.models.config import PrepareModelConfig

    (folder / "model").mkdir()
    prepare_model(folder / "model", PrepareModelConfig(), scratch=folder)
    return folder / "model"


if __name__ == "__main__":
    main()
