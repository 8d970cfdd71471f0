"""Soft labels as a file: for every row and every drawn place, log-probs over the tokens that the format allows there.

Every row of one format has its drawn places at the same distance from the beginning of its answer, so the places are
stored once. The rows themselves are not: `ids` names them.
"""

from pathlib import Path
from typing import NamedTuple

from jaxtyping import Bool, Float, Int
from safetensors.torch import load_file
from torch import Tensor

from sublim.core.errors import UserError
from sublim.files.tensor_files import write_tensors
from sublim.training.masking import UNTRAINED, TokenRow, label_start

FILE = "labels.safetensors"


class SoftLabels(NamedTuple):
    """Labels of n rows with k drawn places, over the a tokens that are allowed at any of them."""

    ids: Int[Tensor, " n"]
    """The rows' ids, in the order of `logprobs`."""
    places: Int[Tensor, " k"]
    """Drawn places, as numbers of tokens from the beginning of the answer."""
    tokens: Int[Tensor, " a"]
    """Token ids, in rising order."""
    allowed: Bool[Tensor, "k a"]
    """Which of the tokens the format allows at each place."""
    logprobs: Float[Tensor, "n k a"]
    """Log-probs in nats, renormalised over the allowed tokens of a place; minus infinity for the others."""

    def mark(self, row: TokenRow, index: int) -> TokenRow:
        """The row with labels at its drawn places alone: place s of row `index` has the label index * k + s.

        Raises UserError if the row has another token than an allowed one at such a place.
        """
        start, labels = label_start(row), [UNTRAINED] * len(row.labels)
        for number, place in enumerate(self.places.tolist()):
            at = start + place
            if at >= len(labels) or row.input_ids[at] not in self.tokens[self.allowed[number]].tolist():
                raise UserError("the soft labels were made for other rows or another tokenizer: make them anew")
            labels[at] = index * len(self.places) + number
        return TokenRow(row.input_ids, labels)


def write_labels(folder: Path, labels: SoftLabels) -> None:
    """Writes labels.safetensors to `folder`."""
    write_tensors(folder / FILE, labels._asdict())


def read_labels(folder: Path) -> SoftLabels:
    """The labels in a payload of `write_soft_labels`. Raises UserError if there are none."""
    if not (folder / FILE).is_file():
        raise UserError(f"{folder} holds no {FILE}: give the payload of write_soft_labels")
    return SoftLabels(**load_file(folder / FILE))
