"""What every backend offers: sampled completions, log-probs of given answers, and steering where it can."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from sublim.chats.chat import Chat
from sublim.residual.edits import Steering

if TYPE_CHECKING:
    from sublim.residual.vectors import LoadedEdit
from sublim.inference.config import NumberFormat, SamplingParams

Finish = Literal["stop", "length", "missing"]
"""stop: the model ended its turn, or the constraint was met; length: cut at max_tokens; missing: a server gave no
answer to this prompt, and the text is empty."""


class Completion(NamedTuple):
    """One answer."""

    text: str
    """As written: no special tokens, nothing stripped."""
    token_ids: list[int] | None
    """As drawn, the end of turn included when the model wrote it; None where a backend has no tokens to show."""
    logprobs: list[float] | None
    """One for each token id, when asked for: under the model's own distribution over the ids that are tokens, before
    temperature and top_p (a server's is over all rows of its output layer). With a constraint that distribution is over
    the tokens the constraint allows, and a forced token has 0."""
    finish: Finish
    reason: str | None = None
    """Why there is no answer, when it is missing."""
    shown: str | None = None
    """The text where special tokens inside it have left a gap, with their names in it; None where there is no gap."""

    def row(self) -> dict[str, Any]:
        """What stages keep of it: text and finish, and the reason of a missing one."""
        return {"text": self.text, "finish": self.finish} | ({"reason": self.reason} if self.reason else {})


class Sampler(Protocol):
    """Draws answers and scores given ones."""

    def sample(
        self, chats: Sequence[Chat], params: SamplingParams, *, constraint: NumberFormat | None = None, first: int = 0
    ) -> list[list[Completion]]:
        """`params.n` answers for each chat, in the order of the chats.

        Rows of the output layer that belong to no token (Qwen pads its own to a round number) are never drawn here.
        Each answer has its own random numbers, from (params.seed, first + index of the chat, index of the answer), so
        that a stage which samples in shards gives each the index of its first chat and draws what one call would.
        """
        ...

    def logprobs(self, chats: Sequence[Chat], continuations: Sequence[Sequence[str]]) -> list[list[list[float]]]:
        """Per chat, per continuation of it: the log-prob of every token of that text as the whole assistant turn.

        Exact, at temperature 1 and over all rows of the output layer, those of no token included: what is compared is
        the model's own probability of given words. The end of turn is not scored. NaN where a server has no log-prob of
        a token.
        """
        ...


class Steerable(Sampler, Protocol):
    """A sampler whose residual stream can be edited while it stays open."""

    def edits(self, steering: Steering, vectors: Path) -> "list[LoadedEdit]":
        """The edits with their vectors; UserError where the model has other layers, another width or another base."""
        ...

    def steer(self, edits: "Sequence[LoadedEdit]") -> None:
        """Makes `edits`, and no earlier ones, in all that is sampled and scored from now on; none when empty."""
        ...
