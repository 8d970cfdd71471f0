"""The interface of a backend: sampling answers, scoring given answers, and steering where the backend supports it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from sublim.chats.chat import Chat
from sublim.inference.config import NumberFormat, SamplingParams
from sublim.residual.edits import Steering

if TYPE_CHECKING:
    from sublim.residual.vectors import LoadedEdit

Finish = Literal["stop", "length", "missing"]
"""stop: the model ended its turn, or the constrained answer is complete. length: cut at max_tokens. missing: a server
gave no answer to this prompt, and the text is empty."""


class Completion(NamedTuple):
    """One answer."""

    text: str
    """The answer as generated, without special tokens; nothing is stripped."""
    token_ids: list[int] | None
    """Sampled token ids, including the end of turn if the model generated it; None where a backend returns no ids."""
    logprobs: list[float] | None
    """Log-prob of each token id, if requested: under the model's distribution over the ids that are tokens, before
    temperature and top_p. A server's distribution is over all rows of its output layer. With a constraint the
    distribution is over the tokens that the constraint allows, and a forced token has log-prob 0."""
    finish: Finish
    reason: str | None = None
    """Why the answer is missing; None otherwise."""
    shown: str | None = None
    """The text with special tokens inside it written by name; None where there are none, so that `text` is complete."""

    def row(self) -> dict[str, Any]:
        """The fields that stages store: text and finish, and the reason of a missing answer."""
        return {"text": self.text, "finish": self.finish} | ({"reason": self.reason} if self.reason else {})


class Sampler(Protocol):
    """Samples answers and scores given ones."""

    def sample(
        self, chats: Sequence[Chat], params: SamplingParams, *, constraint: NumberFormat | None = None, first: int = 0
    ) -> list[list[Completion]]:
        """`params.n` answers for each chat, in the order of the chats.

        Rows of the output layer that belong to no token are never sampled (Qwen pads its output layer to a round
        number). Each answer has random numbers of its own, from (params.seed, first + index of the chat, index of the
        answer). A stage that samples in shards passes each shard the index of its first chat as `first`, and so gets
        the answers that a single call would give.
        """
        ...

    def logprobs(self, chats: Sequence[Chat], continuations: Sequence[Sequence[str]]) -> list[list[list[float]]]:
        """For each chat and each of its continuations, the log-prob of every token of the text as the assistant's turn.

        They are exact, at temperature 1, and normalised over all rows of the output layer, also those that belong to
        no token. The end of turn is not scored. NaN stands where a server gives no log-prob of a token.
        """
        ...


class Steerable(Sampler, Protocol):
    """A sampler whose residual stream can be edited while it stays open."""

    def edits(self, steering: Steering, vectors: Path) -> "list[LoadedEdit]":
        """The edits with their vectors. Raises UserError if they do not fit the model's layers, width or base."""
        ...

    def steer(self, edits: "Sequence[LoadedEdit]") -> None:
        """Replaces the present edits by `edits` (none if empty) for everything sampled and scored from now on."""
        ...
