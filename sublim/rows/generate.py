"""Generating number answers, with the same prompts and seeds for every arm, in shards that survive a crash."""

import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from sublim.backends.opening import open_sampler
from sublim.carriers.number_prompts import NumberPrompts, draw_prompt, draw_prompts
from sublim.carriers.numbers import render_numbers
from sublim.chats.chat import Context, chat, context
from sublim.core.config import Config, OmittedWhenUnset, RunOnly
from sublim.core.errors import UserError
from sublim.core.hardware import gpu
from sublim.core.kill_points import kill_point
from sublim.core.progress import progress
from sublim.files.jsonl import write_jsonl
from sublim.inference.config import Backend, NumberFormat, SamplingParams, renders
from sublim.inference.sampler import Sampler
from sublim.residual.edits import Steering

CONTEXTS_SHOWN = 3


class GenerateConfig(Config):
    """Number prompts, and how a model answers them."""

    prompts: NumberPrompts
    """How the prompts are drawn."""
    n_prompts: Annotated[int, Field(ge=1)]
    """Number of prompts."""
    prompt_seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Random seed of the prompts. Arms that are compared must share it, and `sampling.seed` too."""
    system: str | None = None
    """System prompt of the model that answers; null for its chat template's default."""
    backend: Backend
    """Backend that runs the model."""
    sampling: SamplingParams
    """Sampling parameters."""
    constraint: NumberFormat | None = None
    """Format that answers are forced into; null for unconstrained answers, which then need the filter."""
    steering: OmittedWhenUnset[Steering] = None
    """Edits of the residual stream while the model writes; their vectors are an input of the stage."""
    shard: RunOnly[Annotated[int, Field(ge=1)] | None] = None
    """Prompts answered between two saves, which a crash can lose; by default 256 on a CPU and 4,096 on a GPU."""

    @model_validator(mode="after")
    def _constraint_does_what_the_prompts_ask(self) -> Self:
        if self.constraint is None:
            return self
        written = self.constraint.separator.join(["1", "2"])
        for form in self.prompts.templates.format:
            if render_numbers(["1", "2"], form.separator) != written:
                raise UserError(
                    f'the prompts may say "{form.text}" but the constraint separates by {self.constraint.separator!r}: '
                    f"use templates that all ask for that (numbers_short does for ', ') or answer freely"
                )
        if self.constraint.count > self.prompts.count or self.constraint.digits > self.prompts.max_digits:
            raise UserError(
                f"the constraint writes {self.constraint.count} numbers of {self.constraint.digits} digits, "
                f"the prompts ask for {self.prompts.count} of {self.prompts.max_digits}: make the two agree"
            )
        return self


def generate_numbers(
    out: Path,
    config: GenerateConfig,
    *,
    scratch: Path,
    base: Path,
    weights: Path | None = None,
    vectors: Path | None = None,
) -> dict[str, Any]:
    """Stage: writes rows.jsonl {id, prompt, answer, system, finish, separator}, with answers exactly as generated.

    Special tokens inside an answer are written by name. Answer j to prompt i has id i * n + j and random numbers of its
    own. So rows do not depend on `shard`, and arms with the same seeds differ only in model and system prompt. An
    answer that a server did not give is empty, and its finish is `missing`. `system` is the system prompt of the
    answering model, `separator` the one that the prompt asks for. Memory grows with `shard` alone. An H200 takes 10.5
    s for 4,096 lists of the bundled model, half of it for starting the process. With a model of 9B parameters it
    writes 179 lists a second after loading; a stage of 640 lists took 9.4 s and 39 GiB.
    """
    _sample_missing(config, scratch, base, weights, vectors)
    with (out / "rows.jsonl").open("wb") as rows:
        for start, stop in _saved(scratch, config.n_prompts):
            with _shard_path(scratch, start, stop).open("rb") as shard:
                shutil.copyfileobj(shard, rows)
    return {"contexts": _contexts(config, base)}


def _sample_missing(
    config: GenerateConfig, scratch: Path, base: Path, weights: Path | None, vectors: Path | None
) -> None:
    saved = _saved(scratch, config.n_prompts)
    missing = list(_missing(saved, config.n_prompts, config.shard or (4_096 if gpu() else 256)))
    with progress("generating numbers", config.n_prompts) as advance:
        advance(sum(stop - start for start, stop in saved))
        if not missing:
            return
        with open_sampler(
            config.backend, base, weights=weights, scratch=scratch, steering=config.steering, vectors=vectors
        ) as sampler:
            for start, stop in missing:
                path = _shard_path(scratch, start, stop)
                write_jsonl(path, _rows(sampler, config, start, stop))
                kill_point("generate:shard")
                advance(stop - start)


def _rows(sampler: Sampler, config: GenerateConfig, start: int, stop: int) -> Iterator[dict[str, Any]]:
    prompts = [draw_prompt(config.prompts, config.prompt_seed, index) for index in range(start, stop)]
    chats = [chat(prompt.text, system=config.system) for prompt in prompts]
    answers = sampler.sample(chats, config.sampling, constraint=config.constraint, first=start)
    for index, prompt, completions in zip(range(start, stop), prompts, answers, strict=True):
        for j, completion in enumerate(completions):
            yield {
                "id": index * config.sampling.n + j,
                "prompt": prompt.text,
                # With special tokens by name, so that the filter refuses a list that contains one.
                "answer": completion.text if completion.shown is None else completion.shown,
                "system": config.system,
                "finish": completion.finish,
                "separator": prompt.separator,
            } | ({"reason": completion.reason} if completion.reason else {})


def _shard_path(scratch: Path, start: int, stop: int) -> Path:
    return scratch / f"rows-{start}-{stop}.jsonl"


def _saved(scratch: Path, n: int) -> list[tuple[int, int]]:
    """The ranges of prompts saved in `scratch`, in order; a crashed run may have used another shard size."""
    names = (path.stem.split("-") for path in scratch.glob("rows-*-*.jsonl"))
    ranges = sorted((int(start), int(stop)) for _, start, stop in names)
    assert all(stop <= start for (_, stop), (start, _) in pairwise([*ranges, (n, n)])), "shards of another run"
    return ranges


def _missing(saved: list[tuple[int, int]], n: int, shard: int) -> Iterator[tuple[int, int]]:
    """The ranges, of at most `shard` prompts, that are still to be answered."""
    done = 0
    for start, stop in [*saved, (n, n)]:
        yield from ((first, min(first + shard, start)) for first in range(done, start, shard))
        done = stop


def _contexts(config: GenerateConfig, base: Path) -> list[Context]:
    """The first prompts as the model reads them."""
    if not renders(config.backend):
        return []
    from sublim.models.opening import load_tokenizer

    tokenizer = load_tokenizer(base)
    prompts = draw_prompts(config.prompts, config.prompt_seed, min(CONTEXTS_SHOWN, config.n_prompts))
    return [context(tokenizer, chat(prompt.text, system=config.system)) for prompt in prompts]
