"""Metrics of a probe on its test split, for one weighting of the rows or for many at once."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

METRICS = ("accuracy", "auc", "precision", "recall", "f1")


class Judged(NamedTuple):
    """The results of a probe on its test split, with one column of scores for each class."""

    scores: Float[ndarray, "c k"]
    labels: Int[ndarray, " c"]
    prompts: Int[ndarray, " c"]

    @property
    def right(self) -> Float[ndarray, " c"]:
        """1 for rows whose class with the highest score is the true one, otherwise 0."""
        return (self.scores.argmax(1) == self.labels).astype(float)


def metrics(tested: Judged, weights: Float[ndarray, "w c"] | None = None) -> dict[str, Float[ndarray, " w"]]:
    """Every metric under each weighting of the rows; without `weights`, one weighting with equal weights.

    With two classes the metrics are those of class 1; with more, the unweighted mean over classes, each against the
    rest. Precision is 0 if the class is never predicted, and F1 is 0 if precision and recall are.
    """
    w = np.ones((1, len(tested.labels))) if weights is None else weights
    named, classes = tested.scores.argmax(1), tested.scores.shape[1]
    shown = [1] if classes == 2 else list(range(classes))
    parts: dict[str, list[Float[ndarray, " w"]]] = {"auc": [], "precision": [], "recall": [], "f1": []}
    for one in shown:
        true, said = (tested.labels == one).astype(float), (named == one).astype(float)
        both, all_true, all_said = w @ (true * said), w @ true, w @ said
        parts["precision"].append(_share(both, all_said))
        parts["recall"].append(_share(both, all_true))
        parts["f1"].append(_share(2 * both, all_true + all_said))
        margin = tested.scores[:, one] - (tested.scores[:, 0] if classes == 2 else 0)
        parts["auc"].append(auc(margin, true, w))
    found = {name: np.mean(values, axis=0) for name, values in parts.items()}
    return {"accuracy": _share(w @ tested.right, w.sum(1))} | found


def auc(
    scores: Float[ndarray, " c"], true: Float[ndarray, " c"], weights: Float[ndarray, "w c"]
) -> Float[ndarray, " w"]:
    """Area under the ROC curve: the share of (positive, negative) pairs in which the positive row scores higher.

    Ties count one half; without such a pair the value is 0.5.
    """
    _, groups = np.unique(scores, return_inverse=True)
    member = np.zeros((len(scores), groups.max() + 1))
    member[np.arange(len(scores)), groups] = 1.0
    positive, negative = (weights * true) @ member, (weights * (1 - true)) @ member
    below = np.cumsum(negative, 1) - negative
    return _share((positive * (below + negative / 2)).sum(1), positive.sum(1) * negative.sum(1), nothing=0.5)


def _share(part: Float[ndarray, " w"], whole: Float[ndarray, " w"], nothing: float = 0.0) -> Float[ndarray, " w"]:
    return np.divide(part, whole, out=np.full_like(part, nothing), where=whole > 0)
