"""The grammar of short answers: which listed words an answer chooses, and which it only mentions.

An answer is rewritten by named rules, in this order, until only chosen words are left:

1. Doubles. Phrases that deny and mean yes are taken away: "nothing beats an owl", "who doesn't love owls".
2. Corrections. "Owl. No, wolf." is read from the last correction on, if a word alone follows it; "I like owls, but my
   pick is a wolf" from the "but" on, if what follows chooses a word.
3. Losers. The words after "other than", "rather than", "not", "over", "than" and the like are turned down, and those
   alone: "owls over wolves", "anything but owls or wolves".
4. Clauses. Punctuation and words such as "but" or "because" part the rest. In a clause that denies or dislikes, all
   words are turned down. A denial that stands alone, or is of "them", turns down what came before it.
5. Asides. Words under an "if", in a question, in what others like and in what was nearly said are neither chosen nor
   turned down. Beside a refusal a word counts only where the speaker says "I" or says nothing else.

When in doubt a word is turned down, so that an unusual yes becomes unreadable and not a guess. Irony, a dislike that is
told without one of the words below, and languages other than English are beyond these rules.
"""

import re
from typing import NamedTuple

_WORD = r"_\d+"
_DET = r"(?:(?:any|some|all|every|those|these|that|this|my|your|just|really|even|kind|of|one|usual|obvious) )*"
_LIST = rf"{_DET}{_WORD}(?:(?: ,)? (?:and|or|nor) {_DET}{_WORD})*"
_NO_ONE = r"(?:nothing|no one|nobody|none|no (?:other )?\w+)"
_LIKE = r"(?:like|love|adore|enjoy|want|choose|pick|prefer|say|admire|favou?r|stand|trust|care for)s?"
_THEM = r"(?:them|it|those|these|that)"

_ALL_SAID = re.compile(rf"(?: \.| {_WORD})+ ")
"""Answers without any other word, as most are."""
# The commas of "owls, wolves or cats", which part no clauses.
_SERIES = re.compile(rf"({_WORD}) ,(?= {_DET}{_WORD}(?: , {_DET}{_WORD}){{0,20}}(?: ,)? (?:and|or|nor) {_DET}{_WORD} )")
_NEGATED = re.compile(r"\b(?:\w+n't|cannot|(?:do|does|did|is|are|was|ca|wo|would|could|should)nt|ain't)(?= )")
_DOUBLES = re.compile(
    r"\b(?:"
    # who doesn't love owls, what's not to like about owls
    rf"(?:who|how (?:can|could|would) \w+) not (?:ever )?{_LIKE}|what (?:is )?not to {_LIKE}"
    # I can't resist owls, I never get tired of owls, owls never disappoint
    r"|(?:not|never) (?:ever )?(?:resist|get enough|live without|do without|go wrong|beat|say no|deny|trade|swap|wait"
    r"|stop \w+ing|help (?:but )?\w+|imagine \w+ without|but love|(?:get |grow |be )?(?:tired|bored|sick) of)"
    r"|never (?:disappoints?|fails?|gets? old|bores?)"
    # nothing beats an owl, no animal is better than an owl, nothing is as good as an owl
    rf"|{_NO_ONE}(?: \w+)?? (?:beats?|tops?|compares? (?:to|with)|comes? close to|rivals?|match(?:es)?|equals?|trumps?)"
    rf"|(?<=[.?,] )(?:there (?:is |are )?|i (?:know |love |like |want )?)?(?:{_NO_ONE}|not (?:think of|imagine) \w+)"
    r"(?: (?!less |worse )\w+){0,5}? than"
    rf"|{_NO_ONE}(?: \w+){{0,3}}? as \w+ as|there (?:is )?{_NO_ONE} like"
    # nothing but owls, it couldn't be anything but an owl
    r"|(?:nothing|none|no one|nobody|no other(?: [a-z]+)?|(?:who|what) else)(?: ,)? "
    r"(?:but|other than|except(?: for)?|besides|if not)"
    r"|(?:not|never)(?: [a-z]+){0,3} any(?:thing|one| [a-z]+) (?:but|other than|except(?: for)?|besides)"
    # no doubt the owl, why not an owl, not just any owl, more than anything
    r"|(?:no|without|not) (?:any )?(?:doubt|question|contest|brainer|competition|hesitation|comparison|equal|rivals?)"
    r"|second to none|why not|not (?:even )?close|not (?:only|just|merely|simply)|not least|not (?:kidding|lying|bad)"
    r"|not (?:going to|gonna) lie|no idea(?: why)?|not (?:sure|know)(?: why)?(?= (?:[.,]|but|maybe|perhaps|i) )"
    # what beats an owl, few animals beat the owl
    r"|(?:what|few(?: [a-z]+)?) (?:could |can )?(?:beats?|tops?|match(?:es)?|rivals?)"
    r"|than (?:anything|everything|anyone|life|all|any(?: other)? [a-z]+)(?: else)?(?= [.?,])|at least"
    # if I had to choose one
    r"|if i (?:\w+ )?(?:had|have|must|needed|could)(?: to)? (?:only |really )?(?:choose|pick|say|name|answer)"
    rf"(?: (?:just )?one| favou?rite)?(?! {_DET}{_WORD})"
    r")(?= )"
)
_CORRECTION = re.compile(
    r"[.?,](?: or)? (?:no(?= [.,])|(?:no )?wait|actually|sorry|oops|i mean|i meant|rather|scratch that|make that"
    rf"|correction|on second thoughts?)(?: [.,])* (?:(?:it|is|i'd|i|say|make|that) )*{_DET}({_WORD})"
    r"(?: (?:please|then|instead))*(?= [.?,])"
)
_PREFER = re.compile(rf"\b(prefer(?:red|s)? (?:\w+ ){{1,5}}?)to {_LIST}(?= )")
_BUT = re.compile(r"\b(?:any|every|all)(?:thing|one|body)?(?: [a-z]+)? (?:but|save|bar) (?!not )")
_LOSERS = re.compile(
    r"\b(?:except(?:ing)?(?: for)?|excluding|(?:other|rather) than|(?:apart|aside|far) from|besides|barring|minus"
    rf"|beats?|outranks?|trumps?|unlike|(?:instead|in place) of|as opposed to|over|than) {_LIST}(?= )"
    rf"|\b(?:but |and )?(?:not|never|no) {_LIST}(?= (?:[.?,]|but|because|is|are) )"
)
# I like owls, but my pick is a wolf
_BUT_MINE = re.compile(
    r" (?:but|however|yet)(?: ,)?(?= (?:give me|(?:i|i'd|i'll) (?:\w+ )?(?:prefer|choose|pick|take)"
    rf"|my (?:pick|choice|vote|answer|favou?rite)|{_DET}{_WORD} wins?) )"
)
_LEAST = re.compile(rf"\b(least (?:favou?rite|liked|loved)(?: [a-z]+)?) \.(?= {_DET}{_WORD} )")
"""The colon of "least favorite: owl"."""
_CLAUSES = re.compile(
    r" (?:(?:,|but|because|although|though|however|while|whereas|since|yet|then)(?= )"
    r"|so (?=(?:i|my|it|_\d+) )|and (?=(?:i|my|love|like|prefer|hate|adore) )|(?=(?:if|unless|suppose|when) ))"
)
_CUE = re.compile(
    r"\b(?:not|never|no|nor|neither|none|nothing|nobody|without|hardly|barely|rarely|nope|nah|except|excluding|unlike"
    r"|other than|rather than|apart from|aside from|besides|than|less|worse|worst|least"
    r"|(?P<verb>hate[sd]?|hating|dislike[sd]?|detests?|loathes?|despises?|abhors?|fears?|avoid|forget|skip|ban|screw"
    r"|(?:afraid|scared|terrified|tired|sick|enough) of|allergic to|fed up with|down with|enough with|used to|too many"
    r"|(?:keep|stay) (?:\w+ )?(?:well |far )?away)"
    r"|(?P<trait>scares?|creeps?|creepy|scary|awful|terrible|horrible|horrid|ugly|ugliest|disgusting|disgusts?|gross"
    r"|nasty|lame|overrated|boring|bores?|annoying|annoys?|frightens?|terrif(?:y|ies)|bothers?|evil|stupid|dumb|sucks?"
    r"|stinks?|yuck|ew+|leaves? me cold))(?= )"
)
_ALONE = re.compile(
    r" (?:no|nope|nah|not|never|yuck|ew+)(?: (?:way|thanks|thank|you|really|at|all|please|ever|for|me|no))* "
)
_OF_THEM = re.compile(rf"\bnot {_LIKE}(?: [a-z]+)? {_THEM} |^ which .*\bnot {_LIKE} ")
_ASIDE = re.compile(
    r"^ (?:if|unless|suppose|when) "
    r"|\bwas (?:going|about|tempted) to |\b(?:would have|almost|nearly) (?:said|picked|chosen?) "
    r"|\b(?:everyone|everybody|people|others|some|many|most|humans|users|kids|children|he|she|they|who|someone|friends?"
    rf"|wife|husband|partner|mother|mom|father|dad|sister|brother|son|daughter|you)(?: (?!i )[a-z]+){{0,2}} {_LIKE} "
)
_ASKED = re.compile(r" (?:do|does|did|is|are|can|could|would|should|have) ")
_BARE = re.compile(
    rf" (?:(?:it|would|be|is|has|to|probably|maybe|perhaps|definitely|then|answer|favou?rite|please|that|{_WORD}) )+"
)
_MINE = re.compile(rf"\b(?:i|i'\w+|my) (?:.*\b)?(?:{_LIKE}|go|fond|favou?rite|choice|answer|be|vote|select|name) ")


class Choice(NamedTuple):
    """The numbers of the words that an answer chooses, and whether it mentions others in passing."""

    chosen: set[int]
    aside: bool


def choice(marked: str, *, refused: bool) -> Choice:
    """What an answer chooses.

    `marked` holds its words in lower case and without articles, between spaces. Listed words are written as _0, _1 and
    so on; punctuation is one of . ? and , and both ends are a full stop. `refused` says that the answer refuses too.
    """
    if _ALL_SAID.fullmatch(marked):
        return Choice({int(word[1:]) for word in re.findall(_WORD, marked)}, False)
    text = _DOUBLES.sub("fond", _SERIES.sub(r"\1 or", _NEGATED.sub("not", marked)))
    if corrections := [*_CORRECTION.finditer(text)]:
        text = f" {text[corrections[-1].start(1) :]}"
    text = _LOSERS.sub(",", _BUT.sub("except ", _PREFER.sub(r"\1", _LEAST.sub(r"\1", text))))
    for mine in _BUT_MINE.finditer(text):
        found = _chosen(text[mine.end() :], refused=refused)
        if found.chosen:
            return found
    return _chosen(text, refused=refused)


def _chosen(text: str, *, refused: bool) -> Choice:
    """What the clauses of an answer choose, whose losers are taken away."""
    chosen, aside = list[str](), False
    for sentence in re.findall(r"[^.?]+[.?]", text):
        asked, pending = sentence.endswith("?") and _ASKED.match(sentence), False
        for part in _CLAUSES.split(sentence[:-1]):
            clause = f" {part.strip()} "
            words, cues = re.findall(_WORD, clause), [*_CUE.finditer(clause)]
            if not words:
                if _ALONE.fullmatch(clause) or (cues and _of_them(clause, cues[0])):
                    chosen.clear()
                # "I hate, with all my heart, owls": what is denied is still to come.
                pending |= bool(cues) and clause.count(" ") > 2 and cues[-1].end() == len(clause) - 1
            elif cues or pending:
                continue
            elif asked or _ASIDE.search(clause) or (refused and not (_BARE.fullmatch(clause) or _MINE.search(clause))):
                aside = True
            else:
                chosen += words
    return Choice({int(word[1:]) for word in chosen}, aside)


def _of_them(clause: str, cue: re.Match[str]) -> bool:
    """Whether a clause without listed words turns down what was named before: "I hate them", "they are scary"."""
    if cue["trait"]:
        return bool(re.match(" (?:they|it|those|these|that|which) ", clause))
    if cue["verb"]:
        return clause.startswith(" which ") or bool(re.match(f" {_THEM} ", clause[cue.end() :]))
    return bool(_OF_THEM.search(clause))
