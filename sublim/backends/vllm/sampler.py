"""The vllm backend: samples and scores in vLLM's engine, with the same draws as the hf backend.

Cost: the engine starts in about 25 s. It takes 75 to 90 s for 9 billion parameters, and at the first start on a machine
with a GPU, when kernels are compiled. A further adapter costs only its loading. With an adapter, an H200 writes 367
constrained lists a second with the bundled model (hf: 2,157) and 131 with a model of Gemma 2's 9B shape (hf: 179;
without CUDA graphs: 69). The GPU waits for the CPU there, which handles each row and token by itself. Scoring reads
each question once for every answer.
"""

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, cast

from transformers import AutoConfig, GenerationConfig
from vllm import LLM, RequestOutput
from vllm import SamplingParams as EngineParams
from vllm.inputs import TokensPrompt
from vllm.logprobs import Logprob
from vllm.lora.request import LoRARequest

from sublim.backends.vllm.adapters import adapter_limits, load_adapter
from sublim.backends.vllm.draws import KEY, Answer, Call
from sublim.backends.vllm.engine import borrowed_engine, context_length, failures_explained
from sublim.backends.vllm.known_answer import check_answer
from sublim.backends.vllm.steered import START, EngineHooks
from sublim.chats.chat import Chat
from sublim.core.errors import UserError
from sublim.core.progress import progress
from sublim.inference.config import NumberFormat, SamplingParams, VllmBackend
from sublim.inference.constrained import answer_plan
from sublim.inference.sampler import Completion
from sublim.inference.scoring import Scored, prompt_ids, scored_answers
from sublim.inference.vocabulary import Vocabulary
from sublim.models.files import is_adapter
from sublim.models.opening import load_tokenizer, stop_ids
from sublim.models.weights_check import check_numbers, check_weights
from sublim.residual.edits import Steering
from sublim.residual.vectors import LoadedEdit, load_edits, read_vectors

PARAMS = partial(EngineParams, temperature=0, ignore_eos=True, detokenize=False)
"""Temperature 0, because Draws leaves one possible token."""


@contextmanager
def open_vllm(backend: VllmBackend, base: Path, weights: Path | None) -> Generator["VllmSampler"]:
    """A sampler on the engine for the time of the block; `backend` must be resolved.

    Raises UserError for weights of another base, for an adapter that the engine does not support, and for one that it
    computes wrongly.
    """
    assert backend.dtype != "auto"
    if weights is not None:
        check_weights(base, weights)
        check_numbers(weights)
    adapter = weights if weights is not None and is_adapter(weights) else None
    model = base if weights is None or adapter is not None else weights
    with borrowed_engine(backend, model, adapter_limits(backend, adapter)) as engine:
        request = None
        if adapter is not None:
            request = load_adapter(engine, adapter)
            check_answer(engine.llm, request, adapter)
        sampler = VllmSampler(engine.llm, backend, base, request, context_length(backend, model))
        try:
            yield sampler
        finally:
            sampler.steer([])  # the engine stays for later use


class VllmSampler:
    """A Sampler (see sublim.inference.sampler) on an engine, with or without an adapter."""

    def __init__(self, llm: LLM, backend: VllmBackend, base: Path, adapter: LoRARequest | None, context: int) -> None:
        self.llm, self.backend, self.adapter, self.context = llm, backend, adapter, context
        self.tokenizer = load_tokenizer(base)
        self.base, self.hooks = base, EngineHooks(llm)
        self.stop = stop_ids(self.tokenizer, GenerationConfig.from_pretrained(base).eos_token_id)
        self.vocabulary = Vocabulary(self.tokenizer)
        self.rows = llm.llm_engine.vllm_config.model_config.get_vocab_size()

    def edits(self, steering: Steering, vectors: Path) -> list[LoadedEdit]:
        """See `Steerable.edits`. Raises UserError also for an edit of kind `replace`."""
        if any(edit.kind == "replace" for edit in steering.edits):
            raise UserError("vLLM cannot replace a component of the residual stream by the base's: use the hf backend")
        return load_edits(steering, read_vectors(vectors), AutoConfig.from_pretrained(self.base), self.base)

    def steer(self, edits: Sequence[LoadedEdit]) -> None:
        """See `Steerable.steer`."""
        assert not edits or self.backend.eager, (
            "CUDA graphs that were captured without the edits would run without them"
        )
        self.hooks.put(edits)

    def sample(
        self, chats: Sequence[Chat], params: SamplingParams, *, constraint: NumberFormat | None = None, first: int = 0
    ) -> list[list[Completion]]:
        """See `Sampler.sample`."""
        made = answer_plan(self.tokenizer, constraint, params.max_tokens)
        length = made.length if made else params.max_tokens
        prompts = [self._checked_length(ids, length) for ids in self.prompts(chats)]
        call = Call(params, made, first=first, never=[] if made else self.vocabulary.unknown(self.rows))
        answers = [Answer(call, chat, j, length) for chat in range(len(chats)) for j in range(params.n)]
        stop = [] if made else self.stop
        asked = [PARAMS(max_tokens=length, stop_token_ids=stop, extra_args={KEY: answer}) for answer in answers]
        repeated = [ids for ids in prompts for _ in range(params.n)]
        outputs = self._run(repeated, asked, "sampling", [len(ids) for ids in repeated])
        call.noted()
        whole = [
            self._completion(list(output.outputs[0].token_ids), answer, constrained=made is not None)
            for output, answer in zip(outputs, answers, strict=True)
        ]
        return [whole[at : at + params.n] for at in range(0, len(whole), params.n)]

    def logprobs(self, chats: Sequence[Chat], continuations: Sequence[Sequence[str]]) -> list[list[list[float]]]:
        """See `Sampler.logprobs`."""
        questions = scored_answers(self.tokenizer, chats, continuations)
        for scored in chain.from_iterable(questions):
            self._checked_length(scored.ids, 1)
        scores = iter(self.score([*chain.from_iterable(questions)]))
        return [[next(scores) for _ in question] for question in questions]

    def prompts(self, chats: Sequence[Chat]) -> list[list[int]]:
        """The token ids of each chat's prompt."""
        return prompt_ids(self.tokenizer, chats)

    def score(self, sequences: Sequence[Scored]) -> list[list[float]]:
        """The log-probs of each sequence's scored tokens."""
        asked = [PARAMS(max_tokens=1, prompt_logprobs=0, extra_args={START: start}) for _, start in sequences]
        outputs = self._run([ids for ids, _ in sequences], asked, "scoring", [start for _, start in sequences])
        return [_prompt_scores(output, *one) for output, one in zip(outputs, sequences, strict=True)]

    def _run(
        self, prompts: Sequence[list[int]], params: list[EngineParams], label: str, starts: Sequence[int]
    ) -> list[RequestOutput]:
        """Runs all prompts; `starts` are the positions at which their answers begin."""
        if not prompts:
            return []
        with progress(label, len(prompts)) as advance, failures_explained(self.backend):
            outputs = self.llm.generate(
                [self._prompt(ids, start) for ids, start in zip(prompts, starts, strict=True)],
                params,
                lora_request=self.adapter,
                use_tqdm=cast(Any, partial(Bar, advance)),
            )
            self.hooks.check_met()
            return outputs

    def _prompt(self, ids: list[int], start: int) -> TokensPrompt:
        """The engine's prompt. If an edit depends on the part of the text, only texts whose answers begin at the same
        position may share cached keys and values, so that position becomes the cache salt."""
        prompt = TokensPrompt(prompt_token_ids=ids)
        if self.hooks.by_part:
            prompt["cache_salt"] = str(start)
        return prompt

    def _completion(self, tokens: list[int], answer: Answer, *, constrained: bool) -> Completion:
        stopped = constrained or tokens[-1] in self.stop
        scores = [answer.logprobs[step] for step in range(len(tokens))] if answer.call.params.logprobs else None
        return self.vocabulary.completion(tokens, scores, stopped=stopped, constrained=constrained)

    def _checked_length(self, ids: list[int], more: int) -> list[int]:
        if len(ids) + more > self.context:
            raise UserError(
                f"a text of {len(ids)} tokens and {more} to generate exceed the engine's limit of {self.context}: "
                "shorten the prompt, lower max_tokens or, where the model allows, raise max_length"
            )
        return ids


class Bar:
    """Given to vLLM as its progress bar: reports how many requests are done."""

    def __init__(self, advance: Callable[[int], None], items: Sequence[Any] = (), **_: Any) -> None:
        self.advance, self.items, self.started = advance, items, time.monotonic()
        self.n, self.postfix = 0, ""

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)

    @property
    def format_dict(self) -> dict[str, float]:
        """The elapsed seconds, which vLLM reads."""
        return {"elapsed": max(time.monotonic() - self.started, 1e-6)}

    def update(self, n: int) -> None:
        """Counts `n` more requests as done."""
        self.n += n
        self.advance(n)

    def refresh(self) -> None:
        """Nothing is drawn."""

    def close(self) -> None:
        """Nothing was drawn."""


def _prompt_scores(output: RequestOutput, ids: list[int], start: int) -> list[float]:
    found = cast(list[dict[int, Logprob]], output.prompt_logprobs)
    return [found[place][ids[place]].logprob for place in range(start, len(ids))]
