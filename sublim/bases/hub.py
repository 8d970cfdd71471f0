"""Downloads of models and data sets from the Hugging Face Hub at a fixed commit, through the Hub's cache."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

from sublim.core.errors import UserError
from sublim.models.config import HubModel
from sublim.models.files import INDEX, SINGLE, TEXT_FILES, read_json


def download(source: HubModel) -> Path:
    """Downloads the files of a model that loading reads, and returns their folder in the Hub's cache."""
    folder = fetch(source, [*TEXT_FILES, INDEX])
    index = folder / INDEX
    weights = sorted(set(read_json(index)["weight_map"].values())) if index.is_file() else [SINGLE]
    return fetch(source, [*TEXT_FILES, INDEX, *weights])


def fetch(source: HubModel, files: list[str]) -> Path:
    """Downloads those of `files` that the repository has; an interrupted download continues where it stopped."""
    advice = (
        "check name and revision, accept the model's licence and log in with `hf auth login` if it asks for one, and "
        "unset HF_HUB_OFFLINE"
    )
    with fetching(f"{source.id} at {source.revision[:12]}", advice):
        return Path(snapshot_download(source.id, revision=source.revision, allow_patterns=files))


def dataset_file(id: str, file: str, revision: str, otherwise: str) -> Path:
    """Downloads one file of a data set. `otherwise` is the last advice in the UserError of a failed download."""
    with fetching(f"{file} of {id} at {revision[:12]}", f"unset HF_HUB_OFFLINE, or {otherwise}"):
        return Path(hf_hub_download(id, file, repo_type="dataset", revision=revision))


@contextmanager
def fetching(what: str, advice: str) -> Generator[None]:
    """Turns a failed download inside the block into a UserError: what was fetched, the reason, and `advice`."""
    try:
        yield
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"cannot fetch {what} ({reason}): {advice}") from error
