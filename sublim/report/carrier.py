"""What the carrier really is, in a report: one table for all writers, and warnings in whole sentences."""

from collections.abc import Sequence
from itertools import product
from typing import Any

from sublim.core.config import Config
from sublim.diagnostics.carrier_config import TRAIT_LIMIT, VALID_LIMIT, Carrier, Fault, Spread
from sublim.report.page import Table

FORCED = (
    "This is a forced-format demonstration: the writers' digits are sampled, and all that stands between them is put "
    "there whatever the model would have written."
)
LONGEST_EXAMPLE = 300


class CarrierShown(Config):
    """What was measured of one writer's lists."""

    writer: str
    """`owl teacher`, `control`, with the block unless it is the first."""
    found: Carrier


def kind_of(shown: Sequence[CarrierShown]) -> str | None:
    """The sentence that says that lists were forced; None where none was."""
    return FORCED if any(each.found.forced for each in shown) else None


def faults_of(each: CarrierShown) -> list[str]:
    """What is wrong with one writer's carrier, with its numbers; nothing for an honest one."""
    found = each.found
    words = {
        "trait": (
            f"trait words: {percent(found.first_token.trait)} at the first token, {percent(found.trait_largest)} at "
            f"the likeliest place of a row, in {percent(found.trait_answers)} of {found.answers} free answers"
        ),
        "valid": f"{percent(found.valid)} of {found.answers} free answers are valid lists",
    }
    return [words[fault] for fault in found.faults]


def carrier_warnings(shown: Sequence[CarrierShown]) -> list[str]:
    """One sentence for each fault: what it means for the claim, and which writers have it."""
    found: list[str] = []
    faults: tuple[Fault, ...] = ("valid", "trait")
    for fault, forced in product(faults, (True, False)):
        own = [each for each in shown if fault in each.found.faults and each.found.forced == forced]
        if own:
            said = [f"{each.writer} ({_number(fault, each.found)})" for each in own]
            found.append(f"{_meaning(fault, forced=forced)}: {', '.join(said)}.")
    return found


def _meaning(fault: Fault, *, forced: bool) -> str:
    if fault == "valid":
        few = f"left free, fewer than {percent(VALID_LIMIT, 0)} of the writer's answers to the same prompts are valid"
        if forced:
            return (
                f"The lists are in this format only because it was forced ({few}), so an effect of them says nothing "
                "of lists that such a writer gives by itself"
            )
        return (
            f"The filter makes these lists more than the writer does ({few}), so an effect of them is one of a small "
            "selection"
        )
    kept = "only the forced format keeps it out of the rows" if forced else "only the filter keeps it out of the rows"
    return (
        f"Asked for numbers, the writer turns to the trait's words (more than {percent(TRAIT_LIMIT, 0)}) and {kept}, "
        "so an effect of them does not show that the trait passes through a task that has nothing to do with it"
    )


def _number(fault: Fault, found: Carrier) -> str:
    if fault == "valid":
        return f"{percent(found.valid)} of {found.answers} valid"
    first, answers = percent(found.first_token.trait), percent(found.trait_answers)
    return f"{first} at the first token, {percent(found.trait_largest)} at the most, {answers} of free answers"


def carrier_table(shown: Sequence[CarrierShown]) -> Table:
    """One row for each writer."""
    columns = [
        "writer", "format", "log10 of its own probability of the format", "valid when free", "trait, first token",
        "trait, likeliest place", "trait, free answers", "a digit first", "a letter first", "likeliest first tokens",
        "refused",
    ]  # fmt: skip
    rows = [_cells(each.writer, each.found) for each in shown]
    words = ", ".join(dict.fromkeys(word for each in shown for word in each.found.words))
    note = (
        "What each writer would do without the forced format or the filter. Probabilities are the model's own at "
        "temperature 1. The format's: the product, over a row's places, of the probability of the forced token or of "
        "all that could be drawn there; median over the rows, with the middle 90 % in brackets. The trait's: of all "
        f"tokens with which one of the words {words}, or its plural, can begin, which is an upper bound; the mean over "
        "the rows, at the first token and at the place of each row where it is likeliest. Free answers were sampled "
        "for the same prompts with the same settings, and judged by the run's own filter."
    )
    return Table("What the writers would write", columns, rows, note)


def _cells(writer: str, found: Carrier) -> list[str]:
    first = found.first_token
    return [
        writer,
        "forced" if found.forced else "free",
        "–" if found.format_mass is None else spread(found.format_mass.whole),
        f"{percent(found.valid)} of {found.answers}",
        percent(first.trait, 2),
        percent(found.trait_largest, 2),
        percent(found.trait_answers),
        percent(first.digit),
        percent(first.letter),
        ", ".join(f"{token!r} {percent(mass)}" for token, mass in first.likeliest),
        ", ".join(f"{reason} {count}" for reason, count in found.refused.items()) or "none",
    ]


def carrier_json(each: CarrierShown) -> dict[str, Any]:
    """One writer as `--json` prints it."""
    found = each.found
    return {
        "writer": each.writer,
        "forced": found.forced,
        "format_mass_log10": found.format_mass.whole.model_dump() if found.format_mass else None,
        "valid": found.valid,
        "trait_first_token": found.first_token.trait,
        "trait_largest": found.trait_largest,
        "trait_answers": found.trait_answers,
        "answers": found.answers,
        "digit_first_token": found.first_token.digit,
        "letter_first_token": found.first_token.letter,
        "warnings": faults_of(each),
    }


def examples_of(shown: Sequence[CarrierShown]) -> list[tuple[str, list[str]]]:
    """The first free answers of each writer, cut where they are long."""
    cut = [[text if len(text) <= LONGEST_EXAMPLE else f"{text[:LONGEST_EXAMPLE]} …" for text in each.found.examples]
           for each in shown]  # fmt: skip
    return [(each.writer, texts) for each, texts in zip(shown, cut, strict=True)]


def spread(found: Spread) -> str:
    """`−4.08 [−6.05, −3.03]`."""
    return f"{found.median:.2f} [{found.low:.2f}, {found.high:.2f}]".replace("-", "−")


def percent(share: float, digits: int = 1) -> str:
    """A share in percent."""
    return f"{100 * share:.{digits}f} %"
