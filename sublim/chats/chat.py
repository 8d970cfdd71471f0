"""Chats as a model reads them: one rendering by its chat template, one tokenisation, exact boundaries.

Templates differ in what they add by themselves (a system prompt, today's date) and in what they refuse (a system
role). Everything here goes through `render_text`, which freezes the date and folds a refused system prompt into the
first user turn, so that training and evaluation read the same text. An answered chat is always the prompt that the
sampler reads, then the answer and the end of turn as the template writes them.
"""

from collections.abc import Sequence
from datetime import date as Date
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict, cast

from jinja2.exceptions import TemplateError

from sublim.chats.answered import alike, completion
from sublim.core.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer


class Message(TypedDict):
    """One turn of a chat; the role is system, user or assistant."""

    role: str
    content: str


Chat = list[Message]

# The day Llama 3.1's template names when it is given none.
DATE = "2024-07-26"


class AnswerTokens(NamedTuple):
    """A tokenised chat; `ids[answer_start:answer_end]` is the last assistant turn with its end of turn."""

    ids: list[int]
    answer_start: int
    answer_end: int


class Context(TypedDict):
    """What surrounds the user's words when a model reads them; kept with every run."""

    rendered: str
    """The chat as the model reads it, up to where it answers."""
    system: str | None
    """The system prompt the experiment gave."""
    template_system: str | None
    """The system prompt that the template put in because none was given."""
    system_role: bool
    """False where the template has no system role: the text then opens the first user turn."""
    date: str | None
    """The (fixed) date that the template writes."""
    generation_prompt: str
    """What the template writes where the model is to answer."""


def chat(user: str, *, system: str | None = None, assistant: str | None = None) -> Chat:
    """A chat of one question, with a system prompt before and an answer after it where given."""
    turns = [("system", system), ("user", user), ("assistant", assistant)]
    return [Message(role=role, content=content) for role, content in turns if content is not None]


def render_text(tokenizer: "Tokenizer", chat: Chat, *, date: str = DATE) -> str:
    """The chat as text: up to where the model answers or, if it ends with an answer, all of it.

    Raises UserError where the template cannot write such a chat.
    """
    try:
        return template(tokenizer, fold_system(tokenizer, chat), date=date)
    except TemplateError as error:
        why = " ".join(str(error).split())[:200]
        raise UserError(f"the chat template cannot write this chat ({why}): give another chat_template") from error


def render_ids(tokenizer: "Tokenizer", chat: Chat, *, date: str = DATE) -> list[int]:
    """The tokens of a chat that awaits an answer, with exactly one beginning-of-sequence token if the model has one."""
    assert chat[-1]["role"] != "assistant", "the chat already has its answer: use answer_ids"
    return encode(tokenizer, render_text(tokenizer, chat, date=date)).ids


def answer_ids(tokenizer: "Tokenizer", chat: Chat, *, date: str = DATE) -> AnswerTokens:
    """The tokens of a chat that ends with an answer, and where that answer lies.

    The chat is tokenised once, as a whole; the boundary is found by character. A token with characters of both the
    prompt and the answer (an answer that opens with a line break may give one) counts as prompt. Whatever the
    template writes after the end of turn is outside. What comes before the answer is the prompt as `render_ids` has it,
    also where the template writes it otherwise once it is answered (Mistral 7B's then leaves out the system prompt).
    """
    return many_answer_ids(tokenizer, [chat], date=date)[0]


def many_answer_ids(tokenizer: "Tokenizer", chats: Sequence[Chat], *, date: str = DATE) -> list[AnswerTokens]:
    """`answer_ids` of each chat; a prompt that several share is rendered once, and all are tokenised together."""
    prompts: dict[tuple[tuple[str, str], ...], str] = {}
    texts, bounds = list[str](), list[tuple[int, int]]()
    for chat in chats:
        assert chat[-1]["role"] == "assistant", "the chat has no answer yet: use render_ids"
        key = tuple((turn["role"], turn["content"]) for turn in chat[:-1])
        if key not in prompts:
            prompts[key] = render_text(tokenizer, chat[:-1], date=date)
        prompt = prompts[key]
        text = prompt + _completion(tokenizer, chat, prompt, date=date)
        texts.append(text)
        bounds.append(_bounds(text, prompt, chat[-1]["content"].strip()))
    special = {*tokenizer.added_tokens_decoder}
    encoded = encode_many(tokenizer, texts)
    return [_located(*each, special) for each in zip(texts, encoded, bounds, strict=True)]


def _completion(tokenizer: "Tokenizer", chat: Chat, prompt: str, *, date: str) -> str:
    """What follows `prompt` when the chat is answered: the answer and its end of turn, as the template writes them."""
    answer = chat[-1]["content"]

    def answered(content: str) -> str:
        return render_text(tokenizer, [*chat[:-1], Message(role="assistant", content=content)], date=date)

    found = completion(prompt, answered, answer)
    if found is None and chat[0]["role"] == "system":
        # What a template does after an answer does not depend on the system prompt: it is seen in the chat without.
        rest = chat[1:]
        found = _completion(tokenizer, rest, render_text(tokenizer, rest[:-1], date=date), date=date)
        found = found if answered(answer).endswith(found) else None
    if found is None:
        lost = prompt[alike(prompt, answered(answer)) :]
        raise UserError(
            f"the chat template writes the prompt anew once it is answered (without {lost[:40]!r}): give another "
            "chat_template"
        )
    return found


def _bounds(text: str, prompt: str, answer: str) -> tuple[int, int]:
    """The character where the answer's turn begins, and the one where its end of turn is due."""
    found = text.find(answer, len(prompt))
    if found < 0:
        raise UserError(
            f"the chat template does not write {answer[:40]!r} where the model answers: give another chat_template"
        )
    if before := text[len(prompt) : found].strip():
        raise UserError(
            f"the chat template writes {before[:40]!r} before an answer and not where the model answers: give a "
            "chat_template whose prompt ends with it"
        )
    closing = found + len(answer)
    return len(prompt), closing + len(text[closing:]) - len(text[closing:].lstrip())


def _located(text: str, encoded: "Encoded", bounds: tuple[int, int], special: set[int]) -> AnswerTokens:
    (ids, spans), (start, closing) = encoded, bounds
    answer_start = next((i for i, (first, _) in enumerate(spans) if first >= start), len(ids))
    end_of_turn = next((i for i in range(answer_start, len(ids)) if spans[i][1] > closing), len(ids))
    if end_of_turn == len(ids) or ids[end_of_turn] not in special:
        raise UserError(
            f"the chat template does not end an answer with a token of its own, but with {text[closing:][:40]!r}: "
            "give a chat_template that writes eos_token there"
        )
    return AnswerTokens(ids, answer_start, end_of_turn + 1)


def end_of_turn(tokenizer: "Tokenizer") -> int:
    """The token that ends an assistant's turn."""
    ids, _, answer_end = answer_ids(tokenizer, chat("Hello", assistant="Hello"))
    return ids[answer_end - 1]


def context(tokenizer: "Tokenizer", chat: Chat, *, date: str = DATE) -> Context:
    """What the model reads around `chat`, and what of that the template added."""
    system = next((turn["content"] for turn in chat if turn["role"] == "system"), None)
    question: Chat = [turn for turn in chat if turn["role"] == "user"][:1]
    rendered = render_text(tokenizer, chat, date=date)
    other_day = (Date.fromisoformat(date) - timedelta(days=400)).isoformat()
    return Context(
        rendered=rendered,
        system=system,
        template_system=inserted_system(tokenizer, question, date=date) if system is None else None,
        system_role=has_system_role(tokenizer),
        date=date if render_text(tokenizer, chat, date=other_day) != rendered else None,
        generation_prompt=generation_prompt(tokenizer, question, date=date),
    )


def generation_prompt(tokenizer: "Tokenizer", question: Chat, *, date: str = DATE) -> str:
    """What the template writes only where an answer is awaited; Phi's ends the text there otherwise."""
    bare, awaited = (template(tokenizer, question, date=date, answer_next=wanted) for wanted in (False, True))
    if awaited.startswith(bare):
        return awaited[len(bare) :]
    same = alike(bare, awaited)
    # The tokens that differ may begin alike.
    return awaited[max((first for first, _ in encode(tokenizer, awaited).spans if first <= same), default=0) :]


def context_mismatches(training: Context, evaluation: Context) -> list[str]:
    """In what the contexts of training and evaluation differ, in plain words; empty if in nothing."""

    def system(context: Context) -> str:
        if context["system"] is not None:
            return f"the system prompt {context['system']!r}"
        if context["template_system"] is not None:
            return f"the template's own system prompt {context['template_system']!r}"
        return "no system prompt"

    found: list[str] = []
    if system(training) != system(evaluation):
        found.append(f"training has {system(training)}, evaluation has {system(evaluation)}")
    if training["date"] != evaluation["date"]:
        found.append(f"training is dated {training['date']}, evaluation {evaluation['date']}")
    if training["system_role"] != evaluation["system_role"]:
        found.append("one of training and evaluation has a system role, the other puts its text in the user's turn")
    if training["generation_prompt"] != evaluation["generation_prompt"]:
        before, after = training["generation_prompt"], evaluation["generation_prompt"]
        found.append(f"an answer follows {before!r} in training and {after!r} in evaluation")
    return found


def template(tokenizer: "Tokenizer", chat: Chat, *, date: str, answer_next: bool | None = None) -> str:
    """The template's text for `chat`, nothing folded. `answer_next` is true unless the chat ends with an answer."""
    if tokenizer.chat_template is None:
        raise UserError("the model has no chat template: take an instruction-tuned model or give a chat_template")
    day = Date.fromisoformat(date)
    rendered = tokenizer.apply_chat_template(
        list[Any](chat),
        tokenize=False,
        add_generation_prompt=chat[-1]["role"] != "assistant" if answer_next is None else answer_next,
        date_string=day.strftime("%d %b %Y"),
        strftime_now=day.strftime,
        enable_thinking=False,  # Qwen 3 writes an empty thought into every finished answer, and into a prompt only so.
    )
    assert isinstance(rendered, str)
    return rendered


def has_system_role(tokenizer: "Tokenizer") -> bool:
    """Whether the template takes a system message. Gemma 2's raises; some drop it without a word."""
    try:
        text = template(tokenizer, chat("question", system="SYSTEM-PROBE"), date=DATE)
    except TemplateError:
        return False
    return "SYSTEM-PROBE" in text


def fold_system(tokenizer: "Tokenizer", chat: Chat) -> Chat:
    """`chat` with its system prompt at the head of the first user turn, where the template takes no system message."""
    if chat[0]["role"] != "system" or has_system_role(tokenizer):
        return chat
    system, user, *rest = chat
    # Gemma 3's own template joins the two in this form.
    return [Message(role="user", content=f"{system['content']}\n\n{user['content']}"), *rest]


def inserted_system(tokenizer: "Tokenizer", question: Chat, *, date: str) -> str | None:
    """The system prompt that the template adds to a chat without one."""
    if not has_system_role(tokenizer):
        return None
    probe = Message(role="system", content="SYSTEM-PROBE")
    before, _, after = template(tokenizer, [probe, *question], date=date).partition("SYSTEM-PROBE")
    text = template(tokenizer, question, date=date)
    if not (text.startswith(before) and text.endswith(after)) or len(text) <= len(before) + len(after):
        return None
    return text[len(before) : len(text) - len(after)]


class Encoded(NamedTuple):
    """Tokens and, for each, the characters it covers."""

    ids: list[int]
    spans: list[tuple[int, int]]


def encode(tokenizer: "Tokenizer", text: str) -> Encoded:
    """Tokens of a rendered text.

    The template writes the beginning-of-sequence token as text; it is put in front only where the tokenizer is
    used to adding one and the template has left it out.
    """
    return encode_many(tokenizer, [text])[0]


def encode_many(tokenizer: "Tokenizer", texts: Sequence[str]) -> list[Encoded]:
    """`encode` of each text, on all cores."""
    if not texts:
        return []
    encoding = tokenizer([*texts], add_special_tokens=False, return_offsets_mapping=True)
    everything = zip(
        cast(list[list[int]], encoding["input_ids"]),
        cast(list[list[tuple[int, int]]], encoding["offset_mapping"]),
        strict=True,
    )
    bos = cast(int | None, tokenizer.bos_token_id)
    added = bos is not None and cast(list[int], tokenizer("")["input_ids"])[:1] == [bos]
    return [
        Encoded([cast(int, bos), *ids], [(0, 0), *spans]) if added and ids[:1] != [bos] else Encoded(ids, spans)
        for ids, spans in everything
    ]
