"""Checks of everything that a run needs of its base, made once when the base is prepared.

Weights are not read. Their file headers, the config and the tokenizer are checked, and computations are tried on a
small random model of the same architecture. This takes about 1.5 seconds for the bundled model.
"""

from pathlib import Path

from sublim.bases.dry_run import dry_run
from sublim.bases.shape import check_tied, empty_model, read_shape
from sublim.bases.tokens import check_chats, check_ids, limits_of, read_tokenizer
from sublim.models.folder_check import check_declared_types, check_files, check_types, stored_tensors


def check_source(folder: Path) -> None:
    """Checks a folder before gigabytes are copied from it. Raises UserError."""
    check_files(folder)
    check_declared_types(folder)
    read_shape(folder)
    stored_tensors(folder)


def check_base(base: Path) -> None:
    """Raises UserError if sampling, scoring or training on `base`, the output of `prepare_model`, would go wrong."""
    shape = read_shape(base)
    stored = stored_tensors(base)
    model = empty_model(shape, stored)
    check_types(stored, {name for name, _ in model.named_parameters()})
    check_tied(base, shape, stored)
    tokenizer, limits = read_tokenizer(base), limits_of(model)
    check_ids(base, tokenizer, limits.rows)
    check_chats(tokenizer, limits)
    dry_run(shape, model)
