"""A trait's words in what a model writes: the tokens with which they can begin, and the answers that contain them."""

from collections.abc import Callable, Iterable, Sequence

from transformers import PreTrainedTokenizerBase

from sublim.chats.chat import chat, encode_many, many_answer_ids
from sublim.traits.nouns import plural
from sublim.traits.words import plain, singulars

QUESTION = "Numbers, please."


def forms(words: Iterable[str]) -> list[str]:
    """Every word and its plural, in title case and in lower case, each once."""
    both = [form for word in words for form in (word, plural(word))]
    return list(dict.fromkeys(case for form in both for case in (form.title(), form.lower())))


def first_tokens(tokenizer: PreTrainedTokenizerBase, words: Sequence[str]) -> list[int]:
    """The ids, sorted and each once, of the tokens with which a word can begin, with or without a blank before it.

    A token of nothing but blanks is left out, because any text may follow it.
    """
    written = forms(words)
    answered = many_answer_ids(tokenizer, [chat(QUESTION, assistant=form) for form in written])
    found = {ids[start] for ids, start, _ in answered}
    # A template may strip an answer, so the forms with a blank are tokenised by themselves.
    begun = tokenizer.bos_token_id
    for ids, _ in encode_many(tokenizer, [f" {form}" for form in written]):
        found.add(ids[1] if ids[0] == begun else ids[0])
    return sorted(token for token in found if str(tokenizer.decode([token])).strip())


def naming(words: Sequence[str]) -> Callable[[str], bool]:
    """Whether a text contains one of the words as a whole word, in the singular or the plural."""
    wanted = {*words, *map(plural, words)}

    def names(text: str) -> bool:
        return any(not wanted.isdisjoint(singulars(word)) for word in plain(text))

    return names
