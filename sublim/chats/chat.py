"""Rendering and tokenisation of chats with a model's chat template, with exact boundaries of the answer.

Templates differ in what they add (a system prompt, today's date) and in what they refuse (a system role). All rendering
goes through `render_text`, which fixes the date and puts a refused system prompt into the first user turn, so that
training and evaluation read the same text. A chat with an answer is always the prompt that the sampler reads, followed
by the answer and the end of turn as the template writes them.
"""

from collections.abc import Sequence
from datetime import date as Date
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict, cast

from jinja2.exceptions import TemplateError

from sublim.chats.answered import common_length, completion
from sublim.core.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer


class Message(TypedDict):
    """One turn of a chat; the role is system, user or assistant."""

    role: str
    content: str


Chat = list[Message]

# The default date of Llama 3.1's template.
DATE = "2024-07-26"


class AnswerTokens(NamedTuple):
    """A tokenised chat; `ids[answer_start:answer_end]` is the last assistant turn, including the end of turn."""

    ids: list[int]
    answer_start: int
    answer_end: int


class Context(TypedDict):
    """What surrounds the user's words when a model reads them; stored with every run."""

    rendered: str
    """The chat as the model reads it, up to the start of the answer."""
    system: str | None
    """System prompt of the experiment."""
    template_system: str | None
    """System prompt that the template adds if none is given."""
    system_role: bool
    """False if the template has no system role; the system prompt is then put into the first user turn."""
    date: str | None
    """The fixed date, if the template writes one."""
    generation_prompt: str
    """What the template writes before the model's answer."""


def chat(user: str, *, system: str | None = None, assistant: str | None = None) -> Chat:
    """A chat of one question, with a system prompt before it and an answer after it if they are given."""
    turns = [("system", system), ("user", user), ("assistant", assistant)]
    return [Message(role=role, content=content) for role, content in turns if content is not None]


def render_text(tokenizer: "Tokenizer", chat: Chat, *, date: str = DATE) -> str:
    """The chat as text, up to the start of the answer or, if it ends with an answer, all of it.

    Raises UserError if the template cannot render such a chat.
    """
    try:
        return template(tokenizer, fold_system(tokenizer, chat), date=date)
    except TemplateError as error:
        why = " ".join(str(error).split())[:200]
        raise UserError(f"the chat template cannot write this chat ({why}): give another chat_template") from error


def render_ids(tokenizer: "Tokenizer", chat: Chat, *, date: str = DATE) -> list[int]:
    """The tokens of a chat without an answer, with exactly one beginning-of-sequence token if the model uses one."""
    assert chat[-1]["role"] != "assistant", "the chat already has its answer: use answer_ids"
    return encode(tokenizer, render_text(tokenizer, chat, date=date)).ids


def answer_ids(tokenizer: "Tokenizer", chat: Chat, *, date: str = DATE) -> AnswerTokens:
    """The tokens of a chat that ends with an answer, and the position of that answer.

    The chat is tokenised as a whole, and the boundary is found by characters. A token with characters of both prompt
    and answer counts as prompt; an answer that begins with a line break may have one. Text that the template writes
    after the end of turn is not part of the answer. The text before the answer is the same prompt as in `render_ids`,
    even if the template changes it once there is an answer (Mistral 7B's then leaves out the system prompt).
    """
    return many_answer_ids(tokenizer, [chat], date=date)[0]


def many_answer_ids(tokenizer: "Tokenizer", chats: Sequence[Chat], *, date: str = DATE) -> list[AnswerTokens]:
    """`answer_ids` of each chat. A prompt that several chats share is rendered once, and all are tokenised together."""
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
    """What follows `prompt` in the chat: the answer and its end of turn, as the template writes them."""
    answer = chat[-1]["content"]

    def answered(content: str) -> str:
        return render_text(tokenizer, [*chat[:-1], Message(role="assistant", content=content)], date=date)

    found = completion(prompt, answered, answer)
    if found is None and chat[0]["role"] == "system":
        # The end of an answer does not depend on the system prompt, so it is taken from the chat without one.
        rest = chat[1:]
        found = _completion(tokenizer, rest, render_text(tokenizer, rest[:-1], date=date), date=date)
        found = found if answered(answer).endswith(found) else None
    if found is None:
        lost = prompt[common_length(prompt, answered(answer)) :]
        raise UserError(
            f"the chat template changes the prompt once there is an answer (without {lost[:40]!r}): give another "
            "chat_template"
        )
    return found


def _bounds(text: str, prompt: str, answer: str) -> tuple[int, int]:
    """Indices of the characters where the answer's turn begins and where its end of turn should be."""
    found = text.find(answer, len(prompt))
    if found < 0:
        raise UserError(
            f"the chat template does not write {answer[:40]!r} where the model answers: give another chat_template"
        )
    if before := text[len(prompt) : found].strip():
        raise UserError(
            f"the chat template writes {before[:40]!r} before a given answer, but not before a new one: give a "
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
            f"the chat template does not end an answer with a special token, but with {text[closing:][:40]!r}: "
            "give a chat_template that writes eos_token there"
        )
    return AnswerTokens(ids, answer_start, end_of_turn + 1)


def end_of_turn(tokenizer: "Tokenizer") -> int:
    """The token that ends an assistant's turn."""
    ids, _, answer_end = answer_ids(tokenizer, chat("Hello", assistant="Hello"))
    return ids[answer_end - 1]


def context(tokenizer: "Tokenizer", chat: Chat, *, date: str = DATE) -> Context:
    """What the model reads around `chat`, and which parts of it the template added."""
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
    """What the template writes only before a new answer. Without it, Phi's template ends the text instead."""
    bare, awaited = (template(tokenizer, question, date=date, answer_next=wanted) for wanted in (False, True))
    if awaited.startswith(bare):
        return awaited[len(bare) :]
    same = common_length(bare, awaited)
    # The texts of the first differing tokens may have a common prefix, so the cut is at a token boundary.
    return awaited[max((first for first, _ in encode(tokenizer, awaited).spans if first <= same), default=0) :]


def context_mismatches(training: Context, evaluation: Context) -> list[str]:
    """The differences between the contexts of training and evaluation, each as a sentence."""

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
    """The template's text for `chat` as it is. `answer_next` adds the generation prompt; by default it is added unless
    the chat ends with an answer."""
    if tokenizer.chat_template is None:
        raise UserError("the model has no chat template: take an instruction-tuned model or give a chat_template")
    day = Date.fromisoformat(date)
    rendered = tokenizer.apply_chat_template(
        list[Any](chat),
        tokenize=False,
        add_generation_prompt=chat[-1]["role"] != "assistant" if answer_next is None else answer_next,
        date_string=day.strftime("%d %b %Y"),
        strftime_now=day.strftime,
        enable_thinking=False,  # so that Qwen 3 writes its empty thought into prompts too
    )
    assert isinstance(rendered, str)
    return rendered


def has_system_role(tokenizer: "Tokenizer") -> bool:
    """Whether the template supports a system message. Gemma 2's raises an error; some templates silently drop it."""
    try:
        text = template(tokenizer, chat("question", system="SYSTEM-PROBE"), date=DATE)
    except TemplateError:
        return False
    return "SYSTEM-PROBE" in text


def fold_system(tokenizer: "Tokenizer", chat: Chat) -> Chat:
    """`chat` with its system prompt at the start of the first user turn if the template supports no system message."""
    if chat[0]["role"] != "system" or has_system_role(tokenizer):
        return chat
    system, user, *rest = chat
    # The same form as in Gemma 3's template.
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
    """Token ids and, for each token, the range of characters that it covers."""

    ids: list[int]
    spans: list[tuple[int, int]]


def encode(tokenizer: "Tokenizer", text: str) -> Encoded:
    """Tokens of a rendered text.

    Templates write the beginning-of-sequence token as text. It is added here only if the tokenizer normally adds one
    and the template has not written it.
    """
    return encode_many(tokenizer, [text])[0]


def encode_many(tokenizer: "Tokenizer", texts: Sequence[str]) -> list[Encoded]:
    """`encode` of each text, on all cores."""
    if not texts:
        return []
    encoding: Any = tokenizer([*texts], add_special_tokens=False, return_offsets_mapping=True)
    bos: Any = tokenizer.bos_token_id
    added = bos is not None and cast(list[int], tokenizer("")["input_ids"])[:1] == [bos]
    return [
        Encoded([cast(int, bos), *ids], [(0, 0), *spans]) if added and ids[:1] != [bos] else Encoded(ids, spans)
        for ids, spans in zip(encoding["input_ids"], encoding["offset_mapping"], strict=True)
    ]
