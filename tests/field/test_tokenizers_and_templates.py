"""What chat templates and tokenizers do differently: answered chats, and number lists by construction."""

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from sublim.backends.opening import open_sampler
from sublim.bases.prepare import prepare_model
from sublim.chats.chat import Chat, answer_ids, chat, context, end_of_turn, render_ids, render_text
from sublim.core.errors import UserError
from sublim.inference.config import HfBackend, NumberFormat, SamplingParams
from sublim.inference.constrained import plan
from sublim.inference.vocabulary import Vocabulary
from sublim.models.config import LocalModel, PrepareModelConfig
from sublim.models.opening import load_tokenizer, open_model
from sublim.training.masking import UNTRAINED, token_rows
from tests.field.pieces import LAST_TURN, Blanks, piece_model, piece_tokenizer
from tests.tiny import tiny_tokenizer

SYSTEM = "You love owls."
ASKED = chat("Name it.", system=SYSTEM)


def turns(user: str, *, answered: str = "{{ m.content }}", opened: str = "") -> str:
    """A template of <|im_start|> turns: `user` writes a user's, `answered` an answer, `opened` ends the prompt."""
    return (
        "{%- set system = messages[0].content if messages[0].role == 'system' else none %}"
        "{%- for m in messages if m.role != 'system' %}"
        "{%- if m.role == 'user' %}{{- '<|im_start|>' }}" + user + "{{- '<|im_end|>' }}"
        "{%- else %}{{- '<|im_start|>assistant\\n' }}" + answered + "{{- '<|im_end|>\\n' }}{%- endif %}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n" + opened + "' }}{%- endif %}"
    )


LAST = "{%- if loop.last and system %}"
WRITTEN_ONCE = {
    "before the question": turns(LAST + "{{- system + '\\n\\n' }}{%- endif %}{{- m.content }}"),
    "after the question": turns("{{- m.content }}" + LAST + "{{- '\\n' + system }}{%- endif %}"),
    "in a block of its own": turns(LAST + "{{- '[SYS]' + system + '[/SYS]' }}{%- endif %}{{- m.content }}"),
    "as Llama 2's": turns(
        LAST + "{{- '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' }}{%- else %}{{- ' ' }}{%- endif %}{{- m.content }}"
    ),
    "in place of a greeting": turns(LAST + "{{- system }}{%- else %}{{- 'Hi.' }}{%- endif %}{{- m.content }}"),
    "beside a thought left out later": turns(
        LAST + "{{- system }}{%- endif %}{{- m.content }}", opened="<think>\\n\\n</think>\\n\\n"
    ),
    "in a prompt that awaits an answer": turns(
        "{%- if add_generation_prompt and system %}{{- system }}{%- endif %}{{- m.content }}"
    ),
}


def templated(template: str) -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer("qwen2")
    tokenizer.chat_template = template
    return tokenizer


def answered(tokenizer: PreTrainedTokenizerFast, one: Chat, answer: str) -> str:
    """The answer's turn as text, once what precedes it was seen to be the prompt, token by token."""
    ids, start, end = answer_ids(tokenizer, [*one, {"role": "assistant", "content": answer}])
    assert ids[:start] == render_ids(tokenizer, one)
    return str(tokenizer.decode(ids[start:end]))


@pytest.mark.parametrize("place", WRITTEN_ONCE)
@pytest.mark.parametrize("answer", ["Owl", "<", "e", "12, 13", "owl </s", ""])
def test_a_system_text_that_is_gone_once_answered_stays_in_the_answers_context(place: str, answer: str):
    tokenizer = templated(WRITTEN_ONCE[place])
    assert SYSTEM in render_text(tokenizer, ASKED)
    assert answered(tokenizer, ASKED, answer) == answer + "<|im_end|>"
    assert answered(tokenizer, ASKED[1:], answer) == answer + "<|im_end|>"


def test_earlier_turns_stay_as_the_sampler_reads_them():
    tokenizer = templated(WRITTEN_ONCE["before the question"])
    asked = [*chat("Hello", system=SYSTEM, assistant="Hello owl"), *chat("Hello")]
    assert answered(tokenizer, asked, "Hello") == "Hello<|im_end|>"


def test_a_default_system_text_of_the_last_turn_only_is_kept_too():
    default = "{%- set text = system or 'You are helpful.' %}{%- if loop.last %}{{- text + '\\n' }}{%- endif %}"
    tokenizer = templated(turns(default + "{{- m.content }}"))
    assert answered(tokenizer, ASKED, "Owl") == answered(tokenizer, ASKED[1:], "Owl") == "Owl<|im_end|>"
    assert context(tokenizer, ASKED[1:])["template_system"] == "You are helpful."


@pytest.mark.parametrize(
    "thought", ["<think>\\n\\n</think>\\n\\n", "<|channel>thought\\n<channel|>", "[THINK][/THINK]"]
)
def test_a_closed_thought_that_only_prompts_have_is_part_of_the_context(thought: str):
    tokenizer = templated(turns("{{- m.content }}", opened=thought))
    assert answered(tokenizer, ASKED[1:], "Owl") == "Owl<|im_end|>"
    assert render_text(tokenizer, ASKED[1:]).endswith(thought.replace("\\n", "\n"))


@pytest.mark.parametrize("thought", ["<think>\\n", "<think>", "[THINK]", "<|channel>thought\\n"])
def test_a_template_that_opens_a_thought_where_the_model_answers_is_refused(thought: str):
    with pytest.raises(UserError, match="changes the prompt once there is an answer"):
        end_of_turn(templated(turns("{{- m.content }}", opened=thought)))


def test_what_a_template_refuses_is_one_line():
    tokenizer = templated("{{- raise_exception('only\\ntools') }}")
    with pytest.raises(UserError, match=r"cannot write this chat \(only tools\): give another chat_template"):
        render_text(tokenizer, ASKED)
    with pytest.raises(UserError, match="cannot write this chat"):
        render_text(templated("{% if %}"), ASKED)


ASSISTANT = "<|im_start|>assistant\n"
REMEDIES = {
    "no token ends an answer": (turns("{{- m.content }}").replace("<|im_end|>\\n", "<|end|>"), r"<\|end\|>.*eos_token"),
    "only answers close a thought": (
        turns("{{- m.content }}", opened="<think>\\n", answered="{{- '<think>\\n\\n</think>' + m.content }}"),
        "writes '</think>' before a given answer, .* whose prompt ends with it",
    ),
    "answers go to a channel": (
        turns("{{- m.content }}", answered="{{- '<|channel|>final' + m.content }}"),
        "writes '.*final' before a given answer",
    ),
    "only prompts open a thought": (turns("{{- m.content }}", opened="<think>\\n"), r"without '<think>\\n'"),
}


@pytest.mark.parametrize("label", REMEDIES)
def test_a_refused_template_is_told_what_it_does(label: str):
    template, said = REMEDIES[label]
    with pytest.raises(UserError, match=said):
        end_of_turn(templated(template))


def test_a_template_that_ends_the_text_unless_an_answer_is_awaited_has_its_whole_generation_prompt():
    plain = turns("{{- m.content }}")
    assert context(templated(plain), ASKED)["generation_prompt"] == ASSISTANT
    ended = plain + "{%- if not add_generation_prompt %}{{- '<|endoftext|>' }}{%- endif %}"
    assert context(templated(ended), ASKED)["generation_prompt"] == ASSISTANT
    always = plain.partition("{%- if add_generation_prompt %}")[0]
    assert context(templated(always), ASKED)["generation_prompt"] == ""


@pytest.mark.parametrize(
    ("template", "answer", "written"),
    [
        (turns("{{- m.content }}", answered="{{- m.content | trim }}"), " Owl \n", "Owl<|im_end|>"),
        (
            turns("{{- m.content }}", answered="{% generation %}{{- m.content }}{% endgeneration %}"),
            "Owl",
            "Owl<|im_end|>",
        ),
        (
            turns("{{- m.content }}").replace(
                "<|im_end|>\\n", "' + ('<|endoftext|>' if loop.last else '<|im_end|>') + '"
            ),
            "Owl",
            "Owl<|endoftext|>",
        ),
        ("{{- strftime_now('%d %b %Y') }}" + turns("{{- m.content }}"), "Owl", "Owl<|im_end|>"),
        (
            "{%- if messages[0].role not in ['user', 'developer'] %}{{- raise_exception('no system') }}{%- endif %}"
            + turns("{{- m.content }}"),
            "Owl",
            "Owl<|im_end|>",
        ),
    ],
    ids=["trims the answer", "marks generation", "ends the last turn otherwise", "dated", "developer, not system"],
)
def test_answers_are_found_whatever_else_a_template_does(template: str, answer: str, written: str):
    tokenizer = templated(template)
    assert answered(tokenizer, ASKED[1:], answer) == written
    assert answered(tokenizer, chat(f"{SYSTEM}\n\nName it."), answer) == written


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[Blanks, Path]:
    folder = tmp_path_factory.mktemp("pieces")
    made = dict[Blanks, Path]()
    for blanks in ("first", "legacy", "joined"):
        made[blanks] = folder / blanks
        made[blanks].mkdir()
        source = LocalModel(path=piece_model(folder / f"{blanks}-published", blanks))
        prepare_model(made[blanks], PrepareModelConfig(source=source), scratch=folder)
    return made


@pytest.mark.parametrize("blanks", ["first", "legacy", "joined"])
def test_sampling_training_and_scoring_share_a_context_that_a_template_rewrites(
    blanks: Blanks, bases: dict[Blanks, Path]
):
    tokenizer = load_tokenizer(bases[blanks])
    prompt = render_ids(tokenizer, ASKED)
    assert SYSTEM in tokenizer.decode(prompt)
    [row] = token_rows(tokenizer, [{"prompt": "Name it.", "system": SYSTEM, "answer": "Owl"}], max_length=99)
    assert row.input_ids[: len(prompt)] == prompt
    learnt = [label for label in row.labels if label != UNTRAINED]
    assert row.labels[: len(prompt)] == [UNTRAINED] * len(prompt)
    assert str(tokenizer.decode(learnt)).strip() == "Owl</s>"
    with open_model(bases[blanks], dtype="float32", attention="eager") as loaded:
        logprobs = loaded.model(torch.tensor([row.input_ids])).logits[0].log_softmax(-1)
    wanted = [float(logprobs[at - 1, row.input_ids[at]]) for at in range(len(prompt), len(row.input_ids) - 1)]
    with open_sampler(HfBackend(dtype="float32"), bases[blanks]) as sampler:
        [[found]] = sampler.logprobs([ASKED], [["Owl"]])
    assert found == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("blanks", ["first", "legacy", "joined"])
@pytest.mark.parametrize("separator", [", ", ",", "; ", " ", "\n"])
def test_lists_by_construction_are_what_the_tokenizer_makes_of_their_text(
    blanks: Blanks, separator: str, bases: dict[Blanks, Path]
):
    tokenizer = load_tokenizer(bases[blanks])
    params = SamplingParams(max_tokens=40, n=3, logprobs=True)
    with open_sampler(HfBackend(dtype="float32"), bases[blanks]) as sampler:
        [answers] = sampler.sample([ASKED], params, constraint=NumberFormat(count=4, digits=3, separator=separator))
    for answer in answers:
        numbers = answer.text.split(separator)
        assert [len(number) for number in numbers] == [3] * 4
        assert all(number.isdigit() and number[0] != "0" for number in numbers)
        ids, start, end = answer_ids(tokenizer, [*ASKED, {"role": "assistant", "content": answer.text}])
        assert ids[start : end - 1] == answer.token_ids
    assert len({answer.text for answer in answers}) == 3


def test_a_blank_that_is_a_piece_with_its_digit_is_drawn_with_it():
    tokenizer = piece_tokenizer("joined")

    def encode(text: str) -> list[int]:
        ids, start, end = answer_ids(tokenizer, chat("Numbers?", assistant=text))
        return ids[start : end - 1]

    steps = plan(tokenizer, encode, NumberFormat(count=2, digits=2, separator=" ")).steps
    drawn = [[str(piece) for piece in tokenizer.convert_ids_to_tokens([*step.allowed])] for step in steps]
    assert drawn == [[f"▁{digit}" for digit in "123456789"], [*"0123456789"]] * 2
    assert [step.forced for step in steps] == [()] * 4


def test_blanks_that_the_template_puts_around_answers_are_forced_and_no_part_of_the_list():
    tokenizer = piece_tokenizer("legacy", LAST_TURN.replace("| trim + eos_token", "| trim + ' ' + eos_token"))

    def encode(text: str) -> list[int]:
        ids, start, end = answer_ids(tokenizer, chat("Numbers?", assistant=text))
        return ids[start : end - 1]

    made = plan(tokenizer, encode, NumberFormat(count=2, digits=2))
    assert tokenizer.convert_ids_to_tokens([*made.steps[0].forced, *made.trailing]) == ["▁", "▁", "▁"]
    assert Vocabulary(tokenizer).completion(encode("12, 13"), None, stopped=True, constrained=True).text == "12, 13"


def test_a_tokenizer_whose_text_comes_back_changed_is_refused():
    tokenizer = tiny_tokenizer("qwen2")
    tokenizer.backend_tokenizer.decoder = None  # pieces are then joined by blanks

    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    with pytest.raises(UserError, match="comes out of it as"):
        plan(tokenizer, encode, NumberFormat())
