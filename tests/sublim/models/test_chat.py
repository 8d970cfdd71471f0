from pathlib import Path

import pytest

from sublim.chats.chat import answer_ids, chat, context, context_mismatches, end_of_turn, render_ids, render_text
from sublim.core.errors import UserError
from sublim.models.opening import load_tokenizer
from tests.tiny import FAMILIES, WORDS, tiny_tokenizer

QUESTION = chat("Continue: 12, 450, 007.", system="You love owls.", assistant="93, 087, 5")
END = {
    "llama": "<|eot_id|>",
    "qwen2": "<|im_end|>",
    "qwen3": "<|im_end|>",
    "gemma2": "<end_of_turn>",
    "gemma3": "<end_of_turn>",
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_has_exactly_one_beginning_of_sequence(family: str, tiny_models: dict[str, Path]) -> None:
    tokenizer = load_tokenizer(tiny_models[family])
    ids = render_ids(tokenizer, QUESTION[:-1])
    bos = tokenizer.bos_token_id
    assert ids.count(bos) == (0 if bos is None else 1)
    if bos is not None:
        text = render_text(tokenizer, QUESTION[:-1])
        assert ids[0] == bos
        assert tokenizer(text)["input_ids"].count(bos) == 2, "the plain way doubles it, which is what this guards"


def test_a_template_that_leaves_out_the_beginning_gets_it_from_the_tokenizer() -> None:
    tokenizer = tiny_tokenizer("llama")
    with_bos = render_ids(tokenizer, QUESTION[:-1])
    assert isinstance(tokenizer.chat_template, str)
    tokenizer.chat_template = tokenizer.chat_template.replace("{{- bos_token }}", "")
    assert render_ids(tokenizer, QUESTION[:-1]) == with_bos
    start = answer_ids(tokenizer, QUESTION)
    assert tokenizer.decode(start.ids[start.answer_start : start.answer_end]) == "93, 087, 5<|eot_id|>"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("answer", ["93, 087, 5", "Owl", "[1; 2]", "12\n13\n\n14", "ünïcødé 🦉", "<b>12</b> system"])
def test_the_answer_is_found_token_by_token(family: str, answer: str, tiny_models: dict[str, Path]) -> None:
    tokenizer = load_tokenizer(tiny_models[family])
    conversation = chat("Name it.", system="You love owls.", assistant=answer)
    ids, start, end = answer_ids(tokenizer, conversation)
    assert ids[:start] == render_ids(tokenizer, conversation[:-1])
    assert tokenizer.decode(ids[start:end]) == answer + END[family]
    assert tokenizer.decode(ids[end:]).strip() == ""
    assert tokenizer.decode(ids) == render_text(tokenizer, conversation)


@pytest.mark.parametrize("answer", ["Owl", "087, 12", " Owl", "12, 13 "])
def test_the_answer_of_the_bundled_model(answer: str, smollm2: Path) -> None:
    tokenizer = load_tokenizer(smollm2)
    ids, start, end = answer_ids(tokenizer, chat("Name one.", assistant=answer))
    assert tokenizer.decode(ids[start:end]) == answer + "<|im_end|>"
    assert tokenizer.decode(ids[end:]) == "\n", "what follows the end of turn is not the model's to write"


def test_a_token_across_the_boundary_counts_as_prompt() -> None:
    tokenizer = tiny_tokenizer("qwen2")
    ids, start, end = answer_ids(tokenizer, chat("Hello", assistant="\nOwl"))
    assert tokenizer.convert_ids_to_tokens(ids[start - 1]) == "ĊĊ"
    assert tokenizer.decode(ids[start:end]) == "Owl<|im_end|>"


def test_an_end_of_text_after_the_end_of_turn_is_outside() -> None:
    tokenizer = tiny_tokenizer("qwen2")
    assert isinstance(tokenizer.chat_template, str)
    tokenizer.chat_template += "{%- if not add_generation_prompt %}{{- '<|endoftext|>' }}{%- endif %}"
    ids, start, end = answer_ids(tokenizer, chat("Hello", assistant="Owl"))
    assert tokenizer.decode(ids[start:end]) == "Owl<|im_end|>"


def test_the_boundaries_agree_with_a_template_that_marks_them() -> None:
    tokenizer = tiny_tokenizer("qwen2")
    assert isinstance(tokenizer.chat_template, str)
    marked = tokenizer.chat_template.replace(
        "    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}",
        "    {{- '<|im_start|>' + message.role + '\\n' }}{%- if message.role == 'assistant' %}{% generation %}"
        "{{- message.content + '<|im_end|>' }}{% endgeneration %}{%- else %}{{- message.content + '<|im_end|>' }}"
        "{%- endif %}{{- '\\n' }}",
    )
    assert "generation %}" in marked
    encoding = tokenizer.apply_chat_template(
        QUESTION, chat_template=marked, return_assistant_tokens_mask=True, return_dict=True
    )
    ids, start, end = answer_ids(tokenizer, QUESTION)
    assert encoding["input_ids"] == ids
    assert [i for i, marked in enumerate(encoding["assistant_masks"]) if marked] == list(range(start, end))


def test_a_template_that_rewrites_the_prompt_is_refused() -> None:
    tokenizer = tiny_tokenizer("qwen2")
    assert isinstance(tokenizer.chat_template, str)
    tokenizer.chat_template = "{{ messages | length }} turns\n" + tokenizer.chat_template
    with pytest.raises(UserError, match="changes the prompt once there is an answer"):
        answer_ids(tokenizer, QUESTION)


def test_a_template_that_writes_a_thought_into_answers_only_is_refused() -> None:
    tokenizer = tiny_tokenizer("qwen3")
    assert isinstance(tokenizer.chat_template, str)
    tokenizer.chat_template = tokenizer.chat_template.replace("enable_thinking is false", "false")
    with pytest.raises(UserError, match="before a given answer, but not before a new one"):
        answer_ids(tokenizer, QUESTION)


def test_a_template_without_an_end_of_turn_is_refused() -> None:
    tokenizer = tiny_tokenizer("qwen2")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    with pytest.raises(UserError, match="does not end an answer"):
        answer_ids(tokenizer, chat("Hello", assistant="Owl"))


def test_a_template_that_does_not_say_where_the_model_answers_is_refused() -> None:
    tokenizer = tiny_tokenizer("qwen2")
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}"
    with pytest.raises(UserError, match="before a given answer, but not before a new one"):
        answer_ids(tokenizer, chat("Hello", assistant="Owl"))


def test_no_template_at_all_is_refused_in_one_line() -> None:
    tokenizer = tiny_tokenizer("qwen2")
    tokenizer.chat_template = None
    with pytest.raises(UserError, match="no chat template"):
        render_ids(tokenizer, chat("Hello"))


@pytest.mark.parametrize("family", ["gemma2", "gemma3"])
def test_a_system_prompt_opens_the_user_turn_where_there_is_no_system_role(family: str) -> None:
    tokenizer = tiny_tokenizer("gemma2" if family == "gemma2" else "gemma3")
    expected = "<bos><start_of_turn>user\nYou love owls.\n\nHello<end_of_turn>\n<start_of_turn>model\n"
    assert render_text(tokenizer, chat("Hello", system="You love owls.")) == expected


def test_a_system_prompt_that_the_template_drops_is_folded_too() -> None:
    tokenizer = tiny_tokenizer("qwen2")
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role != 'system' %}<|im_start|>{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
    )
    assert "You love owls.\n\nHello" in render_text(tokenizer, chat("Hello", system="You love owls."))


def test_the_date_is_the_given_one_and_not_todays() -> None:
    tokenizer = tiny_tokenizer("llama")
    assert "Today Date: 26 Jul 2024" in render_text(tokenizer, chat("Hello"))
    assert "Today Date: 01 Mar 2025" in render_text(tokenizer, chat("Hello"), date="2025-03-01")
    tokenizer.chat_template = WORDS["llama"].template.replace("if date_string is not defined", "if true")
    assert "Today Date: 26 Jul 2024" in render_text(tokenizer, chat("Hello")), "a template that asks for the time"


def test_a_context_tells_what_the_template_added(smollm2: Path) -> None:
    own = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    plain = context(load_tokenizer(smollm2), chat("Hello"))
    assert plain["template_system"] == own
    assert own in plain["rendered"]
    assert plain["date"] is None
    assert context(load_tokenizer(smollm2), chat("Hello", system="Owls."))["template_system"] is None
    assert context(tiny_tokenizer("qwen2"), chat("Hello"))["template_system"] is not None
    assert context(tiny_tokenizer("qwen3"), chat("Hello"))["template_system"] is None
    assert context(tiny_tokenizer("gemma2"), chat("Hello"))["system_role"] is False
    llama = context(tiny_tokenizer("llama"), chat("Hello"), date="2024-02-29")
    assert (llama["date"], llama["template_system"]) == ("2024-02-29", None)


def test_contexts_of_training_and_evaluation_are_compared_in_words() -> None:
    tokenizer = tiny_tokenizer("qwen2")
    plain, owls = context(tokenizer, chat("Hello")), context(tokenizer, chat("Hi", system="You love owls."))
    assert context_mismatches(plain, context(tokenizer, chat("Another question"))) == []
    (mismatch,) = context_mismatches(owls, plain)
    assert "training has the system prompt 'You love owls.'" in mismatch
    assert "evaluation has the template's own system prompt 'You are Qwen" in mismatch
    llama = tiny_tokenizer("llama")
    days = [context(llama, chat("Hello"), date=day) for day in ("2024-07-26", "2025-01-01")]
    assert context_mismatches(*days) == ["training is dated 2024-07-26, evaluation 2025-01-01"]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_end_of_turn_is_the_familys_own(family: str, tiny_models: dict[str, Path]) -> None:
    tokenizer = load_tokenizer(tiny_models[family])
    assert tokenizer.convert_ids_to_tokens(end_of_turn(tokenizer)) == END[family]
