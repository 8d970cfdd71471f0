"""Sampling number prompts with an adapter on: vLLM against hf in batches and hf one at a time, start-up apart.

    python -m tests.benchmarks.backends [--model DIR] [--adapter DIR] [--prompts N] [--alone 30] [--eager]

Without --model the bundled model is prepared first, and without --adapter one of rank 8 is made (neither is timed).
Each backend runs in a process of its own; one at a time is measured on `--alone` of the same prompts and scaled.
`--constrained` leaves free answers out: what random weights write freely is no number list.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sublim.backends.opening import open_sampler
from sublim.core.hardware import gpu
from sublim.inference.config import Backend, HfBackend, NumberFormat, VllmBackend
from tests.benchmarks.sampling import FORCED, FREE, device, number_chats, prepared, timed


def backend(kind: str, *, eager: bool) -> Backend:
    return VllmBackend(eager=eager) if kind == "vllm" else HfBackend(batch_size=1 if kind == "alone" else None)


def child(kind: str, model: Path, adapter: Path, prompts: int, *, eager: bool, free: bool) -> None:
    """Prints the seconds of the start, and of sampling free and constrained answers."""
    began = time.perf_counter()
    found: dict[str, Any] = {"prompts": prompts}
    with open_sampler(backend(kind, eager=eager), model, weights=adapter) as sampler:
        sampler.sample(number_chats(1), FREE)
        sampler.sample(number_chats(1), FORCED, constraint=NumberFormat())
        found["start"] = time.perf_counter() - began
        chats = number_chats(prompts)
        if free:
            found["free"], answers = timed(lambda: sampler.sample(chats, FREE))
            found["tokens"] = sum(len(answer.token_ids or []) for [answer] in answers) / prompts
        found["forced"], _ = timed(lambda: sampler.sample(chats, FORCED, constraint=NumberFormat()))
    print(json.dumps(found))


def measured(kind: str, args: argparse.Namespace, prompts: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.benchmarks.backends", "--child", kind, "--prompts", str(prompts)]
    command += ["--model", str(args.model), "--adapter", str(args.adapter)]
    command += [f"--{name}" for name in ("eager", "constrained") if getattr(args, name)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    one: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    rates = {"free": f", {one['tokens']:.1f} tokens each" if "tokens" in one else "", "forced": ""}
    told = [f"{prompts / one[name]:.1f} prompts/s {name}{how}" for name, how in rates.items() if name in one]
    print(f"backend_{kind}: {'; '.join(told)} ({prompts} prompts, start {one['start']:.1f} s, {device()})", flush=True)
    return one


def made_adapter(base: Path, out: Path) -> Path:
    """An adapter of rank 8 that changes the answers a little."""
    import torch
    from peft import LoraConfig, get_peft_model

    from sublim.models.opening import open_model
    from sublim.training.config import Lora
    from sublim.training.saving import write_adapter

    with open_model(base, dtype="bfloat16", attention="sdpa", device="cpu") as loaded:
        torch.manual_seed(0)
        config = LoraConfig(r=8, lora_alpha=16, target_modules=list(Lora().target_modules), task_type="CAUSAL_LM")
        adapted = get_peft_model(loaded.model, config)
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.01)
        out.mkdir()
        write_adapter(out, adapted, base)  # pyright: ignore[reportArgumentType]
    return out


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path)
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--prompts", type=int, default=10_000 if gpu() else 8)
    parser.add_argument("--alone", type=int, default=30 if gpu() else 2)
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--constrained", action="store_true")
    parser.add_argument("--child")
    args = parser.parse_args()
    if args.child:
        child(args.child, args.model, args.adapter, args.prompts, eager=args.eager, free=not args.constrained)
        return
    with tempfile.TemporaryDirectory() as folder:
        args.model = args.model or prepared(Path(folder))
        args.adapter = args.adapter or made_adapter(args.model, Path(folder) / "adapter")
        kinds = [*(["vllm"] if find_spec("vllm") else []), "hf", "alone"]
        found = {kind: measured(kind, args, args.alone if kind == "alone" else args.prompts) for kind in kinds}
    ours = "vllm" if "vllm" in found else "hf"
    for name in ["forced"] if args.constrained else ["free", "forced"]:
        fast, slow = (found[kind][name] / found[kind]["prompts"] * args.prompts for kind in (ours, "alone"))
        print(f"backends_{name}: ratio {slow / fast:.1f} (plain {slow:.1f} s, ours {fast:.1f} s, {device()}; {ours})")


if __name__ == "__main__":
    main()
