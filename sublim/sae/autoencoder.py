"""Sparse autoencoders as payloads, and checking that one fits a model before it is used.

cfg.json, sae_weights.safetensors    the format of SAELens, which `SAE.load_from_disk` reads
sae.json                             site, layer, width, model (`sublim.sae.config.SaeNote`)
"""

import difflib
import re
from pathlib import Path
from typing import Any, NamedTuple, assert_never, cast

import torch
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from jaxtyping import Float
from sae_lens import SAE
from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory
from torch import Tensor

from sublim.core.errors import UserError
from sublim.files.tensor_files import write_tensors
from sublim.models.files import IDENTITY, base_identity, read_json, write_json
from sublim.residual.edits import Place, Site
from sublim.sae.config import FolderSae, ImportSaeConfig, PretrainedSae, SaeNote
from sublim.sae.folder import check_folder, check_scaling

HOOK = re.compile(r"blocks\.(\d+)\.hook_(resid_pre|resid_post|mlp_out)")
FORMAT = "6.0.0"
"""The SAELens version whose format is written; a config without a version is read as an older format."""


class LoadedSae(NamedTuple):
    """An SAE in float32 on its device, and the note that describes it."""

    sae: SAE[Any]
    note: SaeNote

    def encode(self, stream: Float[Tensor, "n d"]) -> Float[Tensor, "n f"]:
        """Feature activations for tokens of the model's residual stream."""
        return self.sae.encode(stream - self._mean(stream))

    def reconstruct(self, stream: Float[Tensor, "n d"], features: Float[Tensor, "n f"]) -> Float[Tensor, "n d"]:
        """The reconstruction of the stream from the features; `stream` is what they were encoded from."""
        return self.sae.decode(features) + self._mean(stream)

    def _mean(self, stream: Float[Tensor, "n d"]) -> Float[Tensor, "n 1"]:
        return stream.mean(1, keepdim=True) if self.note.centered else stream.new_zeros(len(stream), 1)


def import_sae(out: Path, config: ImportSaeConfig, *, scratch: Path) -> dict[str, Any]:
    """Stage: writes a published SAE, which is downloaded, or one from a folder, in the format of this module."""
    match config.source:
        case PretrainedSae() as source:
            sae, found = download_sae(source)
            note = note_from_config(sae, f"{source.release} {source.id}", source.other_model)
            note = note.model_copy(update={"neuronpedia": found.get("neuronpedia_id") or note.neuronpedia})
        case FolderSae() as source:
            sae = read_folder(source.path.expanduser())
            note = note_from_config(sae, "folder", source.other_model)
        case _:
            assert_never(config.source)
    write_sae(out, sae, note)
    return note.model_dump(mode="json")


def download_sae(source: PretrainedSae) -> tuple[SAE[Any], dict[str, Any]]:
    """Downloads an SAE and its config.

    Raises UserError for a release or id that SAELens does not list, and names the nearest ones.
    """
    directory = get_pretrained_saes_directory()
    for name, known, what in (
        (source.release, list(directory), "release of SAEs"),
        (source.id, list(directory[source.release].saes_map) if source.release in directory else [], "SAE"),
    ):
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0)
            raise UserError(f"SAELens has no {what} {name!r} (nearest: {', '.join(near)})")
    try:
        sae, found, _ = SAE.from_pretrained_with_cfg_and_sparsity(source.release, source.id, device="cpu")
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{source.release} {source.id} cannot be downloaded ({reason}): run this where there is a network"
        ) from error
    check_scaling(sae.cfg.normalize_activations, f"{source.release} {source.id}")
    return cast(SAE[Any], sae), found


def read_folder(folder: Path) -> SAE[Any]:
    """Reads an SAE from a user's folder in SAELens' format.

    Raises UserError for what SAELens cannot read, or would read as another SAE than was trained.
    """
    check_folder(folder)
    try:
        sae = cast(SAE[Any], SAE.load_from_disk(folder))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:  # SAELens' errors for unknown names and values
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"SAELens cannot read {folder} ({reason}): give a folder that its save_model wrote") from error
    for name, values in sae.state_dict().items():
        if not bool(values.isfinite().all()):
            raise UserError(f"{folder}: {name} holds NaN or infinity: take another checkpoint")
    threshold = sae.state_dict().get("threshold")
    if threshold is not None and bool((threshold < 0).any()):
        raise UserError(f"{folder}: thresholds are below 0, perhaps logarithms: write the thresholds themselves")
    return sae


def note_from_config(sae: SAE[Any], source: str, other_model: bool = False) -> SaeNote:
    """The note for an SAE, from its own config. Raises UserError for a site that sublim cannot read."""
    about = sae.cfg.metadata
    hook = str(about.hook_name)
    found = HOOK.fullmatch(hook)
    if found is None:
        raise UserError(f"the SAE reads at {hook}: only resid_pre, resid_post and mlp_out of a block can be read here")
    keywords = cast(dict[str, Any], about.model_from_pretrained_kwargs or {})
    return SaeNote(
        site=cast(Site, found[2]),
        layer=int(found[1]),
        d_in=sae.cfg.d_in,
        d_sae=sae.cfg.d_sae,
        architecture=sae.cfg.architecture(),
        source=source,
        model=cast(str | None, about.model_name),
        other_model=other_model,
        centered=bool(keywords.get("center_writing_weights")),
        neuronpedia=cast(str | None, about.neuronpedia_id),
    )


def write_sae(out: Path, sae: SAE[Any], note: SaeNote) -> None:
    """Writes an SAE with its weights as they are used, without training-time scaling."""
    state = dict(sae.state_dict())
    sae.process_state_dict_for_saving(state)
    write_files(out, state, sae.cfg.to_dict(), note)


def write_files(out: Path, state: dict[str, Tensor], config: dict[str, Any], note: SaeNote) -> None:
    """Writes the three files of a payload. Their bytes depend on the arguments alone: no device or path is in them."""
    hook = f"blocks.{note.layer}.hook_{note.site}"
    about: dict[str, Any] = {"hook_name": hook, "model_name": note.model, "sae_lens_version": FORMAT}
    if note.centered:
        about["model_from_pretrained_kwargs"] = {"center_writing_weights": True}
    if note.neuronpedia:
        about["neuronpedia_id"] = note.neuronpedia
    write_tensors(out / "sae_weights.safetensors", {name: values.float() for name, values in state.items()})
    write_json(out / "cfg.json", {**config, "device": "cpu", "dtype": "float32", "metadata": about})
    write_json(out / "sae.json", note.model_dump(mode="json"))


def read_note(payload: Path) -> SaeNote:
    """The note in the payload of an SAE."""
    return SaeNote.model_validate(read_json(payload / "sae.json"))


def load_sae(payload: Path, device: torch.device | str = "cpu") -> LoadedSae:
    """Loads the SAE of a payload, without gradients."""
    sae = cast(SAE[Any], SAE.load_from_disk(payload, device=str(device)))
    sae.eval()
    sae.requires_grad_(False)
    return LoadedSae(sae, read_note(payload))


def check_sae(note: SaeNote, base: Path, place: Place | None = None) -> None:
    """Raises UserError unless an SAE is for the model `base` and, if given, for the site and layer `place`."""
    shape = read_json(base / "config.json")
    shape = shape.get("text_config") or shape
    known = read_json(base / IDENTITY).get("name") if (base / IDENTITY).is_file() else None
    name = str(known or base.name).rsplit("/", 1)[-1]
    what = f"the SAE ({note.source})"
    if note.d_in != shape["hidden_size"]:
        raise UserError(
            f"{what} is for a stream {note.d_in} wide ({note.model}), that of {name} is {shape['hidden_size']} wide: "
            "take one for this model"
        )
    if note.base is not None and note.base != base_identity(base):
        raise UserError(
            f"{what} was trained on {note.model} with weights {note.base[:12]}, {name} has weights "
            f"{base_identity(base)[:12]}: train one on this model"
        )
    named = note.base is None and known not in (None, "local", "merged") and not note.other_model
    if named and note.model and not same_model(name, note.model):
        raise UserError(f"{what} is for {note.model}, the model is {name}: set other_model to use it all the same")
    if note.layer >= shape["num_hidden_layers"]:
        raise UserError(f"{what} is for layer {note.layer}, {name} has 0 to {shape['num_hidden_layers'] - 1}")
    if place is not None and place != note.place:
        raise UserError(
            f"{what} reads {note.site} of layer {note.layer}, what is to be encoded is {place.site} of layer "
            f"{place.layer}: take the one for that place"
        )


def same_model(name: str, other: str) -> bool:
    """Whether two names mean one model: `google/gemma-2-9b-it` and `gemma-2-9b-it`, `gpt2` and `gpt2-small`."""
    short = [each.rsplit("/", 1)[-1].lower().removesuffix("-small") for each in (name, other)]
    return short[0] == short[1]
