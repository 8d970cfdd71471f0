"""Opens a study in its storage, and refuses one whose trials were made with other settings."""

from collections.abc import Iterator, Mapping
from typing import Any, cast

import optuna
from optuna import Study

from sublim.core.digest import canonical
from sublim.core.errors import UserError
from sublim.core.kill_points import kill_point
from sublim.search.config import Journal, StudyConfig, direction
from sublim.search.pruning import make_pruner
from sublim.search.storage import asking, check_place, open_storage
from sublim.search.study import Search


def open_search(config: StudyConfig) -> Search:
    """Opens the study, and creates it if it does not exist. Raises UserError if it was created with other settings."""
    storage = open_storage(config)
    with asking(storage, config.name):
        if config.name in optuna.get_all_study_names(storage):
            study = optuna.load_study(study_name=config.name, storage=storage)
            check_settings(study, config)
        else:
            study = optuna.create_study(
                study_name=config.name, storage=storage, directions=[direction(name) for name in config.objectives]
            )
        kill_point("search:created")
        if not study.get_trials(deepcopy=False):
            study.set_user_attr("settings", canonical(config.settings))
            study.set_metric_names([str(name) for name in config.objectives])
            if config.first is not None:
                study.enqueue_trial(config.first, user_attrs={"slot": 0})
        study.pruner = make_pruner(config.pruning, config.updates, study)
    return Search(config, storage, study)


def check_stored(config: StudyConfig) -> None:
    """Raises UserError for a storage that cannot be used or a stored study with other settings; creates no study."""
    if isinstance(config.storage, Journal):
        assert config.storage.path is not None
        journal = config.storage.path.expanduser().absolute()
        if not journal.exists():
            check_place(journal)
            return
    storage = open_storage(config)
    with asking(storage, config.name):
        if config.name in optuna.get_all_study_names(storage):
            check_settings(optuna.load_study(study_name=config.name, storage=storage), config)


def check_settings(study: Study, config: StudyConfig) -> None:
    """Raises UserError for a study whose trials were made with other settings, and names the first that differs."""
    wanted = [str(direction(name)) for name in config.objectives]
    if (found := [each.name.lower() for each in study.directions]) != wanted:
        raise UserError(
            f"the stored study {config.name!r} has the directions {' and '.join(found)}, these settings have "
            f"{' and '.join(wanted)}: give another name in `study`"
        )
    stored = study.user_attrs.get("settings")
    if stored is None:
        if study.get_trials(deepcopy=False):
            raise UserError(f"the study {config.name!r} was not made by this program: give another name in `study`")
        return
    before, now = (dict(flat(cast(Mapping[str, Any], tree))) for tree in (stored, canonical(config.settings)))
    differing = [name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)]
    if differing:
        name = differing[0]
        more = f" (and {len(differing) - 1} more)" if len(differing) > 1 else ""
        raise UserError(
            f"the stored study {config.name!r} has {name} = {before.get(name, 'nothing')}, these settings have "
            f"{now.get(name, 'nothing')}{more}: give another name in `study`, or the settings of the stored study"
        )


def flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a tree, by dotted names."""
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from flat(cast(Mapping[str, Any], value), f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
