"""Models and data of the Hugging Face hub, at one commit, through the hub's own cache."""

from pathlib import Path

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

from sublim.core.errors import UserError
from sublim.models.config import HubModel
from sublim.models.files import INDEX, SINGLE, TEXT_FILES, read_json


def download(source: HubModel) -> Path:
    """The folder of the hub's cache that holds the model; only files that loading reads are fetched."""
    folder = fetch(source, [*TEXT_FILES, INDEX])
    index = folder / INDEX
    weights = sorted(set(read_json(index)["weight_map"].values())) if index.is_file() else [SINGLE]
    return fetch(source, [*TEXT_FILES, INDEX, *weights])


def fetch(source: HubModel, files: list[str]) -> Path:
    """Those of `files` that the repository has. An interrupted download goes on where it stopped."""
    try:
        return Path(snapshot_download(source.id, revision=source.revision, allow_patterns=files))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"cannot fetch {source.id} at {source.revision[:12]} ({reason}): check name and revision, "
            "accept the model's licence and log in with `hf auth login` if it asks for one, and unset HF_HUB_OFFLINE"
        ) from error


def dataset_file(id: str, file: str, revision: str, otherwise: str) -> Path:
    """One file of a data set in the hub's cache. `otherwise` ends the UserError of a download that fails."""
    try:
        return Path(hf_hub_download(id, file, repo_type="dataset", revision=revision))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"cannot fetch {file} of {id} at {revision[:12]} ({reason}): unset HF_HUB_OFFLINE, or {otherwise}"
        ) from error
