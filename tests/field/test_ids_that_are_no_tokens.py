"""Ids that no tokenizer knows are never drawn, and special tokens inside an answer do not vanish from its text."""

import random
from pathlib import Path

import orjson
import pytest
import torch
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM

from sublim.backends.opening import open_sampler
from sublim.bases.prepare import prepare_model
from sublim.carriers.number_prompts import NumberPrompts, load_number_templates
from sublim.carriers.numbers import NumberRules, Rejection, read_numbers
from sublim.chats.chat import chat, end_of_turn, render_ids
from sublim.files.jsonl import read_jsonl
from sublim.inference.config import HfBackend, NumberFormat, SamplingParams
from sublim.inference.draws import draw
from sublim.inference.noise import uniforms
from sublim.inference.vocabulary import LOST, Vocabulary
from sublim.models.config import LocalModel, PrepareModelConfig
from sublim.models.opening import load_tokenizer
from sublim.rows.generate import GenerateConfig, generate_numbers
from tests.tiny import WORDS, Family, tiny_model, tiny_tokenizer

CHATS = [chat(f"Number {number}?") for number in range(16)]
HF = HfBackend(dtype="float32")
PADDING = 64


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """`whole`: a row for every token. `padded`: 64 likely rows more. `holed`: 60 of those lie between two tokens."""
    folder, made = tmp_path_factory.mktemp("padded"), dict[str, Path]()
    for name in ("whole", "padded", "holed"):
        source = tiny_model(folder / f"{name}-published", "qwen2")
        if name != "whole":
            known = pad(source)
            if name == "holed":
                add_far_token(source, known + 60)
        made[name] = folder / name
        made[name].mkdir()
        prepare_model(made[name], PrepareModelConfig(source=LocalModel(path=source)), scratch=folder)
    return made


def pad(folder: Path) -> int:
    """Gives the model likely rows that no token has; how many rows it had."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    known = model.config.vocab_size
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model.resize_token_embeddings(known + PADDING)
        model.get_input_embeddings().weight[known:] *= 4  # the output layer's too: the two are tied
    model.save_pretrained(folder)
    return known


def add_far_token(folder: Path, number: int) -> None:
    """Adds a token that leaves unused ids before it."""
    path = folder / "tokenizer.json"
    content = orjson.loads(path.read_bytes())
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    content["added_tokens"].append({"id": number, "content": "<far>", **plain})
    content["model"]["vocab"]["<far>"] = number
    path.write_bytes(orjson.dumps(content))


@pytest.mark.parametrize("name", ["padded", "holed"])
@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(max_tokens=12, n=2, logprobs=True),
        SamplingParams(max_tokens=12, n=2, temperature=1.7, top_p=0.9),
        SamplingParams(max_tokens=12, temperature=0),
    ],
    ids=["plain", "hot nucleus", "likeliest"],
)
def test_no_id_without_a_token_is_drawn(name: str, params: SamplingParams, bases: dict[str, Path]):
    vocabulary = Vocabulary(load_tokenizer(bases[name]))
    with open_sampler(HF, bases[name]) as sampler:
        answers = [one for own in sampler.sample(CHATS, params) for one in own]
    assert all(vocabulary.known.issuperset(answer.token_ids or []) for answer in answers)
    assert any(answer.text for answer in answers)


def test_log_probs_of_draws_are_over_tokens_and_those_of_given_words_over_all_rows(bases: dict[str, Path]):
    tokenizer = load_tokenizer(bases["padded"])
    unknown = Vocabulary(tokenizer).unknown(len(tokenizer) + PADDING)
    with open_sampler(HF, bases["padded"]) as sampler:
        [[drawn]] = sampler.sample(CHATS[:1], SamplingParams(max_tokens=1, logprobs=True))
        [[given]] = sampler.logprobs(CHATS[:1], [["1"]])
    model = AutoModelForCausalLM.from_pretrained(bases["padded"])
    with torch.no_grad():
        logits = model(torch.tensor([render_ids(tokenizer, CHATS[0])])).logits[0, -1].double()
    [one] = tokenizer("1", add_special_tokens=False)["input_ids"]
    assert given == pytest.approx([float(logits.log_softmax(0)[one])], abs=1e-4)
    logits[unknown] = -torch.inf
    assert drawn.token_ids is not None
    assert drawn.logprobs == pytest.approx([float(logits.log_softmax(0)[drawn.token_ids[0]])], abs=1e-4)


def test_constrained_lists_of_a_padded_vocabulary_are_those_of_the_whole_one(bases: dict[str, Path]):
    params, texts = SamplingParams(max_tokens=64, logprobs=True), list[object]()
    for name in ("whole", "padded"):
        with open_sampler(HF, bases[name]) as sampler:
            texts.append(
                [own[0].token_ids for own in sampler.sample(CHATS[:4], params, constraint=NumberFormat(count=3))]
            )
    assert texts[0] == texts[1]


def test_nothing_is_masked_where_every_row_is_a_token(bases: dict[str, Path]):
    tokenizer = load_tokenizer(bases["whole"])
    assert Vocabulary(tokenizer).unknown(len(tokenizer)) == []
    holed = load_tokenizer(bases["holed"])
    assert len(holed) < len(tokenizer) + PADDING
    assert Vocabulary(holed).unknown(len(tokenizer) + PADDING) == [
        *range(len(tokenizer), len(tokenizer) + 60),
        *range(len(tokenizer) + 61, len(tokenizer) + PADDING),
    ]


def test_the_vllm_backends_draws_leave_out_the_same_ids():
    pytest.importorskip("vllm", reason="vLLM is not installed on this machine")
    from sublim.backends.vllm.draws import Answer, Call, Draws, Row

    params, never = SamplingParams(max_tokens=3, logprobs=True, seed=5), [1, 6, 7]
    logits = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    logits[:, never] += 9
    call = Call(params, None, first=0, never=never)
    draws = Draws(None, torch.device("cpu"), is_pin_memory=False)
    draws.rows = {row: Row(Answer(call, row, 0, 3), []) for row in range(4)}
    noise = torch.tensor([uniforms(5, row, 0, 3)[0] for row in range(4)])
    wanted = draw(logits.index_fill(1, torch.tensor(never), -torch.inf), noise, 1, 1)
    assert draws.apply(logits.clone()).argmax(1).tolist() == wanted.tokens.tolist()
    draws.rows.pop(0)  # a request that is not ours
    left = draws.apply(logits.clone())
    assert left[0].tolist() == logits[0].tolist()
    assert left[1:].argmax(1).tolist() == wanted.tokens[1:].tolist()


@pytest.mark.parametrize("family", ["qwen2", "llama", "gemma2", "qwen3"])
def test_a_special_token_inside_an_answer_is_seen_by_the_filter(family: Family):
    tokenizer = tiny_tokenizer(family)
    vocabulary, rules = Vocabulary(tokenizer), NumberRules()
    clean = tokenizer("12, 13, 14", add_special_tokens=False)["input_ids"]
    end, rng = end_of_turn(tokenizer), random.Random(0)
    assert vocabulary.completion([*clean, end], None, stopped=True)[0::4] == ("12, 13, 14", None)
    assert vocabulary.completion(clean, None, stopped=False)[0::4] == ("12, 13, 14", None)
    for special in sorted(vocabulary.special & {*tokenizer.convert_tokens_to_ids(WORDS[family].special)}):
        at = rng.randrange(len(clean))
        shown = vocabulary.shown([*clean[:at], special, *clean[at:], end], stopped=True)
        assert shown is not None
        assert str(tokenizer.convert_ids_to_tokens(special)) in shown
        assert isinstance(read_numbers(shown, rules), Rejection)
        cut = vocabulary.shown([*clean, special], stopped=False)
        assert cut is not None
        assert isinstance(read_numbers(cut, rules), Rejection)


def test_special_tokens_that_a_model_draws_stand_in_the_rows_it_generates(bases: dict[str, Path], tmp_path: Path):
    prompts, sampling = NumberPrompts(templates=load_number_templates("numbers")), SamplingParams(max_tokens=12, n=8)
    config = GenerateConfig(prompts=prompts, n_prompts=16, backend=HF, sampling=sampling)
    generate_numbers(tmp_path, config, scratch=tmp_path, base=bases["whole"])
    texts = [row["answer"] for row in read_jsonl(tmp_path / "rows.jsonl")]
    assert any("<|im_start|>" in text or "<|endoftext|>" in text for text in texts)
    assert not any("<|im_end|>" in text for text in texts), "the end of turn is no part of an answer"


def test_an_id_that_a_server_drew_and_no_tokenizer_knows_is_seen_by_the_filter():
    tokenizer = tiny_tokenizer("qwen2")
    clean = tokenizer("12, 13", add_special_tokens=False)["input_ids"]
    tokens = [*clean[:2], len(tokenizer) + 5, *clean[2:], end_of_turn(tokenizer)]
    shown = Vocabulary(tokenizer).shown(tokens, stopped=True)
    assert shown == f"12{LOST}, 13"
    assert read_numbers(shown, NumberRules()) == Rejection.SYMBOLS


def test_tokens_that_are_added_but_not_special_are_text_as_ever():
    tokenizer = tiny_tokenizer("qwen2")
    tokenizer.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    tokens = tokenizer("<think>12, 13", add_special_tokens=False)["input_ids"]
    assert tokens[0] == len(tokenizer) - 1
    found = Vocabulary(tokenizer).completion([*tokens, end_of_turn(tokenizer)], None, stopped=True)
    assert (found.text, found.shown) == ("<think>12, 13", None)
