"""Number lists by construction: the tokens are the tokenizer's own, whatever it does with digits."""

import random
import re
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sublim.chats.chat import answer_ids, chat
from sublim.core.errors import UserError
from sublim.inference.config import NumberFormat
from sublim.inference.constrained import Plan, plan
from sublim.models.opening import load_tokenizer


def of_digits(pattern: str, widths: list[int]) -> PreTrainedTokenizerFast:
    """A tokenizer that cuts digits by `pattern` and knows every number of `widths` digits."""
    texts = [f"{number:0{width}}" for width in widths for number in range(10**width)]
    vocabulary = {text: token for token, text in enumerate([*texts, ",", " ", ", ", "?"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(rf"{pattern}|, |,| "), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="?")


def made(tokenizer: PreTrainedTokenizerFast, format: NumberFormat) -> Plan:
    return plan(tokenizer, lambda text: tokenizer(text, add_special_tokens=False)["input_ids"], format)


def write(made: Plan, tokenizer: PreTrainedTokenizerFast, rng: random.Random) -> tuple[list[int], str]:
    ids = [token for step in made.steps for token in (*step.forced, rng.choice(step.allowed))] + list(made.trailing)
    return ids, str(tokenizer.decode(ids))


@pytest.mark.parametrize("widths", [[1], [1, 2, 3]])
@pytest.mark.parametrize("separator", [", ", ",", " "])
@pytest.mark.parametrize("digits", [1, 3, 4])
def test_every_choice_of_tokens_is_how_the_tokenizer_writes_its_text(widths: list[int], separator: str, digits: int):
    tokenizer = of_digits(rf"\d{{1,{widths[-1]}}}", widths)
    format = NumberFormat(count=3, digits=digits, separator=separator)
    steps, rng = made(tokenizer, format), random.Random(1)
    assert len(steps.steps) == 3 * -(-digits // widths[-1])
    for _ in range(50):
        ids, text = write(steps, tokenizer, rng)
        assert re.fullmatch(rf"[1-9]\d{{{digits - 1}}}({re.escape(separator)}[1-9]\d{{{digits - 1}}}){{2}}", text)
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == ids
        assert len(ids) == steps.length


def test_a_first_digit_is_never_zero_and_every_other_digit_may_be():
    steps = made(of_digits(r"\d", [1]), NumberFormat(count=2, digits=2)).steps
    assert [len(step.allowed) for step in steps] == [9, 10, 9, 10]


def test_a_tokenizer_that_cuts_digits_by_their_value_is_refused():
    with pytest.raises(UserError, match="sample freely and filter instead"):
        made(of_digits(r"1\d|\d", [1, 2]), NumberFormat())
    with pytest.raises(UserError, match="sample freely and filter instead"):
        made(of_digits(r"\d", [1]), NumberFormat(separator=" ; "))


def test_the_bundled_models_numbers_are_written_as_its_tokenizer_writes_them(smollm2: Path):
    tokenizer, rng = load_tokenizer(smollm2), random.Random(2)

    def encode(text: str) -> list[int]:
        ids, start, end = answer_ids(tokenizer, chat("Numbers?", assistant=text))
        return ids[start : end - 1]

    steps = plan(tokenizer, encode, NumberFormat())
    assert (len(steps.steps), steps.length) == (30, 48)
    assert [len(step.forced) for step in steps.steps] == [0, 0, 0] + [2, 0, 0] * 9
    for _ in range(50):
        ids = [token for step in steps.steps for token in (*step.forced, rng.choice(step.allowed))]
        assert encode(str(tokenizer.decode(ids))) == ids
