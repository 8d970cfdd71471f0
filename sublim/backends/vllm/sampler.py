"""The vllm backend: samples and scores in vLLM's engine, with the same draws as the hf backend.

Costs: the engine starts in about 25 s (75 to 90 s for 9 billion parameters, and the first time on a machine with a GPU,
when kernels are compiled); an adapter more costs only its loading. With one on, an H200 writes 367 constrained lists a
second with the bundled model (hf: 2,157) and 131 with Gemma 2's 9B shape (hf: 179; eager: 69). It waits for its host
there, which works a row and a token at a time. Scoring reads each question once for every answer.
"""

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

from transformers import AutoConfig, GenerationConfig, PreTrainedTokenizerBase
from vllm import LLM, RequestOutput
from vllm import SamplingParams as EngineParams
from vllm.inputs import TokensPrompt
from vllm.lora.request import LoRARequest

from sublim.backends.vllm.adapters import needed, taken
from sublim.backends.vllm.draws import KEY, Answer, Call
from sublim.backends.vllm.engine import context_length, lent_engine, naming_the_field
from sublim.backends.vllm.known_answer import check_answer
from sublim.backends.vllm.steered import START, EngineHooks
from sublim.chats.chat import Chat, Message, answer_ids, chat, end_of_turn
from sublim.core.errors import UserError
from sublim.core.progress import progress
from sublim.inference.config import NumberFormat, SamplingParams, VllmBackend
from sublim.inference.constrained import plan
from sublim.inference.sampler import Completion
from sublim.inference.scoring import Scored, prompt_ids
from sublim.inference.vocabulary import Vocabulary
from sublim.models.files import is_adapter
from sublim.models.opening import load_tokenizer, token_ids
from sublim.models.weights_check import check_numbers, check_weights
from sublim.residual.edits import Steering
from sublim.residual.vectors import LoadedEdit, load_edits, read_vectors


@contextmanager
def open_vllm(backend: VllmBackend, base: Path, weights: Path | None) -> Generator["VllmSampler"]:
    """`backend` must be resolved. Refuses weights of another base, and an adapter that the engine cannot take or takes
    for something else.
    """
    assert backend.dtype != "auto"
    tokenizer = load_tokenizer(base)
    if weights is not None:
        check_weights(base, weights)
        check_numbers(weights)
    adapter = weights if weights is not None and is_adapter(weights) else None
    model = base if weights is None or adapter is not None else weights
    with lent_engine(backend, model, needed(backend, adapter)) as engine:
        request = None
        if adapter is not None:
            request = taken(engine, adapter)
            check_answer(engine.llm, request, adapter)
        sampler = VllmSampler(engine.llm, backend, base, tokenizer, request, context_length(backend, model))
        try:
            yield sampler
        finally:
            sampler.steer([])  # the engine is kept


class VllmSampler:
    """A Sampler (see sublim.backends.opening) on an engine, with an adapter or without."""

    def __init__(
        self,
        llm: LLM,
        backend: VllmBackend,
        base: Path,
        tokenizer: PreTrainedTokenizerBase,
        adapter: LoRARequest | None,
        context: int,
    ) -> None:
        self.llm, self.backend, self.tokenizer, self.adapter, self.context = llm, backend, tokenizer, adapter, context
        self.base, self.hooks = base, EngineHooks(llm)
        declared = GenerationConfig.from_pretrained(base).eos_token_id
        self.stop = sorted({*token_ids(declared), *token_ids(tokenizer.eos_token_id), end_of_turn(tokenizer)})
        self.vocabulary, self.rows = Vocabulary(tokenizer), llm.llm_engine.vllm_config.model_config.get_vocab_size()

    def edits(self, steering: Steering, vectors: Path) -> list[LoadedEdit]:
        """The edits with their vectors, checked against this model."""
        if any(edit.kind == "replace" for edit in steering.edits):
            raise UserError("vLLM cannot replace a component of the stream by the base's: use the hf backend")
        return load_edits(steering, read_vectors(vectors), AutoConfig.from_pretrained(self.base), self.base)

    def steer(self, edits: Sequence[LoadedEdit]) -> None:
        """Makes `edits`, and no earlier ones, in all that is sampled and scored from now on; none when empty."""
        assert not edits or self.backend.eager, "graphs that were captured without the edits would go on without them"
        self.hooks.put(edits)

    def sample(
        self, chats: Sequence[Chat], params: SamplingParams, *, constraint: NumberFormat | None = None, first: int = 0
    ) -> list[list[Completion]]:
        made = plan(self.tokenizer, self._answer, constraint) if constraint else None
        if made is not None and made.length > params.max_tokens:
            raise UserError(f"constrained answers have {made.length} tokens: raise max_tokens from {params.max_tokens}")
        length = made.length if made else params.max_tokens
        prompts = [self._fits(ids, length) for ids in self.prompts(chats)]
        call = Call(params, made, first=first, never=[] if made else self.vocabulary.unknown(self.rows))
        answers = [Answer(call, chat, j, length) for chat in range(len(chats)) for j in range(params.n)]
        asked = [
            EngineParams(
                temperature=0,  # Draws leaves one token to take
                max_tokens=length,
                stop_token_ids=[] if made else self.stop,
                ignore_eos=True,
                detokenize=False,
                extra_args={KEY: answer},
            )
            for answer in answers
        ]
        repeated = [ids for ids in prompts for _ in range(params.n)]
        outputs = self._run(repeated, asked, "sampling", [len(ids) for ids in repeated])
        call.noted()
        whole = [
            self._completion(list(output.outputs[0].token_ids), answer, constrained=made is not None)
            for output, answer in zip(outputs, answers, strict=True)
        ]
        return [whole[at : at + params.n] for at in range(0, len(whole), params.n)]

    def logprobs(self, chats: Sequence[Chat], continuations: Sequence[Sequence[str]]) -> list[list[list[float]]]:
        questions = [
            [self._scored(one, text) for text in texts] for one, texts in zip(chats, continuations, strict=True)
        ]
        scores = iter(self.score([scored for question in questions for scored in question]))
        return [[next(scores) for _ in question] for question in questions]

    def prompts(self, chats: Sequence[Chat]) -> list[list[int]]:
        """The tokens the engine is given for each chat."""
        return prompt_ids(self.tokenizer, chats)

    def score(self, sequences: Sequence[Scored]) -> list[list[float]]:
        """Log-probs of the scored tokens of each sequence."""
        asked = [
            EngineParams(
                temperature=0,
                max_tokens=1,
                prompt_logprobs=0,
                ignore_eos=True,
                detokenize=False,
                extra_args={START: start},
            )
            for _, start in sequences
        ]
        outputs = self._run([ids for ids, _ in sequences], asked, "scoring", [start for _, start in sequences])
        return [_prompt_scores(output, *one) for output, one in zip(outputs, sequences, strict=True)]

    def _run(
        self, prompts: Sequence[list[int]], params: list[EngineParams], label: str, starts: Sequence[int]
    ) -> list[RequestOutput]:
        """`starts`: where each answer begins."""
        if not prompts:
            return []
        with progress(label, len(prompts)) as advance, naming_the_field(self.backend):
            outputs = self.llm.generate(
                [self._prompt(ids, start) for ids, start in zip(prompts, starts, strict=True)],
                params,
                lora_request=self.adapter,
                use_tqdm=cast(Any, partial(Bar, advance)),
            )
            self.hooks.check_met()
            return outputs

    def _prompt(self, ids: list[int], start: int) -> TokensPrompt:
        """Where edits tell prompt from answer, texts share cached keys only if their answers begin at one place."""
        prompt = TokensPrompt(prompt_token_ids=ids)
        if self.hooks.by_part:
            prompt["cache_salt"] = str(start)
        return prompt

    def _completion(self, tokens: list[int], answer: Answer, *, constrained: bool) -> Completion:
        stopped = constrained or tokens[-1] in self.stop
        scores = [answer.logprobs[step] for step in range(len(tokens))] if answer.call.params.logprobs else None
        return self.vocabulary.completion(tokens, scores, stopped=stopped, constrained=constrained)

    def _scored(self, one: Chat, text: str) -> Scored:
        ids, start, end = answer_ids(self.tokenizer, [*one, Message(role="assistant", content=text)])
        return Scored(self._fits(ids[: end - 1], 1), start)

    def _answer(self, text: str) -> list[int]:
        ids, start, end = answer_ids(self.tokenizer, chat("Ten numbers, please.", assistant=text))
        return ids[start : end - 1]

    def _fits(self, ids: list[int], more: int) -> list[int]:
        if len(ids) + more > self.context:
            raise UserError(
                f"a text of {len(ids)} tokens and {more} to write do not fit the engine's {self.context}: "
                "shorten the prompt, lower max_tokens or, where the model allows, raise max_length"
            )
        return ids


class Bar:
    """What vLLM takes for a progress bar: hands on how many requests are done."""

    def __init__(self, advance: Callable[[int], None], items: Sequence[Any] = (), **_: Any) -> None:
        self.advance, self.items, self.started = advance, items, time.monotonic()
        self.n, self.postfix = 0, ""

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)

    @property
    def format_dict(self) -> dict[str, float]:
        return {"elapsed": max(time.monotonic() - self.started, 1e-6)}

    def update(self, n: int) -> None:
        self.n += n
        self.advance(n)

    def refresh(self) -> None:
        """Nothing is drawn."""

    def close(self) -> None:
        """Nothing was drawn."""


def _prompt_scores(output: RequestOutput, ids: list[int], start: int) -> list[float]:
    found = output.prompt_logprobs
    assert found is not None
    scores = list[float]()
    for place in range(start, len(ids)):
        at = found[place]
        assert at is not None
        scores.append(at[ids[place]].logprob)
    return scores
