"""Everything that a base must have for a whole run, tried once when it is prepared and before anything is kept.

Weights are not read: headers, config and tokenizer say what they are, and a small random model of the same kind stands
for the base where something is computed. About a second and a half for the bundled model.
"""

from pathlib import Path

from sublim.bases.dry_run import dry_run
from sublim.bases.shape import check_tied, empty_model, read_shape
from sublim.bases.tokens import check_chats, check_ids, limits_of, read_tokenizer
from sublim.models.folder_check import check_declared_types, check_files, check_types, stored_tensors


def check_source(folder: Path) -> None:
    """What can be known of a folder before gigabytes are copied from it; raises UserError."""
    check_files(folder)
    check_declared_types(folder)
    read_shape(folder)
    stored_tensors(folder)


def check_base(base: Path) -> None:
    """Raises UserError, in one line that says what to do, where sampling, scoring or training on `base` would go wrong.

    `base` is what `prepare_model` wrote.
    """
    shape = read_shape(base)
    stored = stored_tensors(base)
    model = empty_model(shape, stored)
    check_types(stored, {name for name, _ in model.named_parameters()})
    check_tied(base, shape, stored)
    tokenizer, limits = read_tokenizer(base), limits_of(model)
    check_ids(base, tokenizer, limits.rows)
    check_chats(tokenizer, limits)
    dry_run(shape, model)
