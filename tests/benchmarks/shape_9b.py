"""Does the 9B preset fit a card of 48 GB? Its stages on a random Gemma 2 of the true shape, with the peak of each.

    python -m tests.benchmarks.shape_9b --folder DIR             # a GPU; some 6 minutes on an H200, 40 GB in DIR
    python -m tests.benchmarks.shape_9b --folder DIR --tiny      # a rehearsal; needs no GPU
    python -m tests.benchmarks.shape_9b --folder DIR --steps tokenizer    # the one thing that needs the bundled model

The model has the config of google/gemma-2-9b with the bundled Gemma 3's tokenizer and so its 262,144 tokens (the real
one has 256,000), bfloat16 weights as they are initialised, and the chat template of a Gemma 2. Random weights write
nothing that a filter keeps: the number lists are constrained, which makes them as long as real ones, and answers
written freely are a step of their own. All else that decides memory is the preset's.

On a larger card another process holds all but `--card-gib` meanwhile: what sizes itself by free memory finds an A6000's
and what does not fit fails. A step's results stay in DIR, so that a call which is cut, or which `--minutes` ends, goes
on with the next step. The exit code is 1 where a step failed or a stage held `--limit-gib` or more.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from flows.runs.record import list_runs
from flows.runs.settings import merge
from sublim.core.hardware import gpu
from sublim.inference.config import HfBackend, VllmBackend
from sublim.store.opening import open_store
from tests.benchmarks.smaller_card import GIB, smaller_card

PRESET = "gemma-2-9b-a6000"
SHAPE: dict[str, Any] = {
    "hidden_size": 3584,
    "intermediate_size": 14336,
    "num_hidden_layers": 42,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "max_position_embeddings": 8192,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}
TINY: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "query_pre_attn_scalar": 16,
}
FEWER: dict[str, Any] = {
    "carrier": {"prompts": 640, "separator": "comma_space", "constraint": {"count": 10, "digits": 3}},
    "filter": {"keep": 216, "held_out": 8},
    "teacher": {"train": {"attention": "sdpa"}},
    "student": {"epochs": None, "updates": 4, "attention": "sdpa"},
    "seeds": [0],
    "evaluation": {"samples": 20, "mmlu_pro": None},
    "backend": {"kind": "hf", "attention": "sdpa"},
}
"""Still more prompts and answers than are under way at a time, and updates of as many rows. What the stages share must
not change where flash-attention comes and goes, so it is named."""
FEWEST: dict[str, Any] = {
    "teacher": {"train": {"batch_size": 4, "updates": 1}},
    "carrier": {"prompts": 8},
    "filter": {"keep": 6, "held_out": 2},
    "student": {"batch_size": 4, "micro_batch": 2, "updates": 2},
    "evaluation": {"samples": 1, "sampling": {"max_tokens": 4}},
    "gpu_memory_gib": 0,
}
"""For a processor, which has no memory to fill."""
STEPS: dict[str, str | None] = {
    "tokenizer": None,
    "model": None,
    "pipeline": None,
    "free": None,
    "flash": "flash_attn",
    "unsloth": "unsloth",
    "vllm": "vllm",
    "rows24": None,
}
"""Every step with the package that it needs. The last is more than a card of 48 GB holds; it runs when it is named."""
STUDENTS: dict[str, dict[str, Any]] = {
    "flash": {"attention": "flash_attention_2"},
    "unsloth": {"trainer": "unsloth"},
    "rows24": {"micro_batch": 24},
}
"""How a student is trained in the steps that train one."""


def settings(folder: Path, *, tiny: bool) -> dict[str, Any]:
    """What is laid over the preset."""
    made = merge(FEWER, {"model": {"kind": "local", "path": str(folder / "model")}})
    return merge(made, FEWEST) if tiny else made


def write_tokenizer(folder: Path) -> None:
    """The bundled Gemma 3's tokenizer."""
    from sublim.bases.gemma3 import assemble, read_tokenizer

    whole = assemble(folder)
    read_tokenizer(whole).save_pretrained(folder / "tokenizer")
    whole.unlink()


def write_model(folder: Path, tokenizer: Path, shape: dict[str, Any]) -> None:
    """The random model; its weights are drawn where they will be used, a billion a second on a GPU."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma2Config

    from tests.tiny import GEMMA2_TEMPLATE

    words, draft = AutoTokenizer.from_pretrained(tokenizer), folder / "model.draft"
    words.chat_template = GEMMA2_TEMPLATE
    ids = {name: getattr(words, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(
            Gemma2Config(vocab_size=len(words), **ids, **shape), dtype=torch.bfloat16
        )
    shutil.rmtree(draft, ignore_errors=True)
    model.save_pretrained(draft, max_shard_size="5GB")
    words.save_pretrained(draft)
    draft.rename(folder / "model")
    print(f"{model.num_parameters():,} parameters of {model.dtype}")


def another_way(step: str, given: dict[str, Any], card_gib: float) -> None:
    """A student trained, or free answers written, in another way than the preset's; the rest comes from the cache."""
    from prefect import flow

    from flows.pipeline.bases import prepare_bases
    from flows.pipeline.block import filter_together
    from flows.pipeline.flow import load_config
    from flows.pipeline.models import ModelState, write_numbers
    from flows.pipeline.plan import CONTROL, generate_config, student_config
    from flows.pipeline.teachers import make_teacher
    from flows.runs.record import recorded
    from tasks.processes import one_process
    from tasks.stages import train_student

    config = load_config(PRESET, None, given)
    free = load_config(PRESET, None, merge(given, {"carrier": {"separator": None, "constraint": None}}))
    backends = {"flash": HfBackend(attention="flash_attention_2"), "vllm": engine(card_gib)}
    free = free.model_copy(update={"backend": backends.get(step, free.backend)})
    [target] = config.target

    @flow(name=f"shape-{step}")
    def run() -> None:
        with recorded("shape-9b", step, target):
            base = prepare_bases(config)["base"]
            teacher = make_teacher(config, base, target, 0)
            if step in ("free", "flash", "vllm"):
                write_numbers(generate_config(free, arm=target, block=0), step, teacher)
            if step not in STUDENTS:
                return
            with one_process():
                raw = {
                    arm: write_numbers(generate_config(config, arm=arm, block=0), arm, writer)
                    for arm, writer in ((CONTROL, ModelState(base)), (target, teacher))
                }
            rows = filter_together(config, raw)
            # Rows at a time are in no key: with the seed of the pipeline's student its weights would be taken.
            train = student_config(config, 1 if step == "rows24" else 0, 0)
            train = train.model_copy(update=STUDENTS[step])
            train_student(train, label=step, base=base, data=rows[target])

    run()


def engine(card_gib: float) -> VllmBackend:
    """vLLM with as much memory as its default share of the smaller card; eager, because graphs take their time."""
    card = gpu()
    share = VllmBackend().memory_fraction * (card_gib * GIB / card.memory if card else 1)
    return VllmBackend(memory_fraction=min(share, 1.0), max_length=512, eager=True)


def called(step: str, args: argparse.Namespace) -> dict[str, Any]:
    """Runs a step in a process of its own: its stages with their peaks and, where it failed, the end of its log."""
    given, log = args.folder / "settings.yaml", args.folder / f"{step}.log"
    given.write_text(json.dumps(settings(args.folder, tiny=args.tiny)))
    command = [sys.executable, "-m", "tests.benchmarks.shape_9b", "--child", step, "--folder", str(args.folder)]
    command += ["--card-gib", str(args.card_gib), "--tokenizer", str(args.tokenizer), *["--tiny"] * args.tiny]
    if step == "pipeline":
        command = [sys.executable, "-m", "flows", "run", "pipeline", "--preset", PRESET, "--config", str(given)]
    store = open_store()
    before = {run.name for run in list_runs(store)}
    with log.open("w") as file:
        code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
    stages: list[dict[str, Any]] = []
    for each in (stage for run in list_runs(store) if run.name not in before for stage in run.stages):
        manifest = store.manifest(each.stage, each.key)
        notes = manifest.notes if manifest else {}
        kept = {name: notes[name] for name in ("attention", "packed", "dtype", "micro_batch") if name in notes}
        seconds = manifest.provenance.seconds if manifest else each.seconds
        peak = notes.get("peak_gpu_bytes")
        stages.append({**each.model_dump(), "seconds": seconds, "peak_gib": peak and peak / GIB, **kept})
    return {"failed": log.read_text()[-3000:] if code else None, "stages": stages}


def told(step: str, found: dict[str, Any], limit_gib: float) -> bool:
    """Prints what a step did; whether it did it within the limit."""
    fits = True
    for each in found["stages"]:
        peak = each["peak_gib"]
        over = peak is not None and peak >= limit_gib
        fits = fits and not over
        if peak is not None or each["state"] == "Failed":
            how = ", ".join(f"{name} {each[name]}" for name in ("attention", "micro_batch") if name in each)
            held = f"{'OVER ' * over}{peak:5.1f} GiB" if peak is not None else "no peak"
            name = f"{each['stage']} {each['label']}"
            print(f"shape_9b {step}: {name:36} {each['seconds']:6.1f} s  {held}  {each['state']}  {how}")
    print(f"shape_9b {step}: {found['seconds']:.0f} s{', FAILED:' if found['failed'] else ''}", flush=True)
    if found["failed"]:
        print(found["failed"], flush=True)
    return fits and not found["failed"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, help="a folder made by --steps tokenizer")
    parser.add_argument("--steps", default=",".join(step for step in STEPS if step not in ("tokenizer", "rows24")))
    parser.add_argument("--card-gib", type=float, default=47.4)
    parser.add_argument("--limit-gib", type=float, default=44.0)
    parser.add_argument("--minutes", type=float, default=60.0, help="begin no step after so many")
    parser.add_argument("--out", type=Path, help="a JSON file for all results")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--child")
    args = parser.parse_args()
    args.folder = args.folder.absolute()
    args.tokenizer = (args.tokenizer or args.folder / "tokenizer").absolute()
    args.folder.mkdir(parents=True, exist_ok=True)
    os.environ |= {"SUBLIM_STORE": str(args.folder / "store"), "HF_HUB_OFFLINE": "1"}
    match args.child:
        case None:
            sys.exit(not measured(args))
        case "tokenizer":
            write_tokenizer(args.folder)
        case "model":
            write_model(args.folder, args.tokenizer, SHAPE | TINY if args.tiny else SHAPE)
        case step:
            another_way(step, settings(args.folder, tiny=args.tiny), args.card_gib)


def measured(args: argparse.Namespace) -> bool:
    """Runs the steps that are still to be run, and tells of all; whether everything fits."""
    began, results, well = time.monotonic(), args.folder / "results.json", True
    found: dict[str, Any] = json.loads(results.read_text()) if results.exists() else {}
    with smaller_card(args.card_gib):
        for step in args.steps.split(","):
            package = STEPS[step]
            if package is not None and (gpu() is None or find_spec(package) is None):
                print(f"shape_9b {step}: not here, it needs a GPU and {package}")
                continue
            if step not in found or found[step]["failed"]:
                if time.monotonic() - began > 60 * args.minutes:
                    print(f"shape_9b {step}: left for another call", flush=True)
                    continue
                started = time.monotonic()
                made = called(step, args)
                found[step] = {**made, "seconds": time.monotonic() - started}
                results.write_text(json.dumps(found, indent=1))
            well = told(step, found[step], args.limit_gib) and well
    if args.out:
        args.out.write_text(json.dumps({"card_gib": args.card_gib, "limit_gib": args.limit_gib, "steps": found}))
    return well


if __name__ == "__main__":
    main()
