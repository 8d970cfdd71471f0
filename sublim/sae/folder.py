"""Checking folders with SAEs in SAELens' format before anything runs.

SAELens reads some folders as another SAE than was trained, without a warning: it takes a default for a missing k,
ignores an activation function that it no longer supports, and omits a scaling of the stream that has not been folded
into the weights. Such folders are refused here.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError, safe_open

from sublim.core.errors import UserError
from sublim.files.user_files import read_object, reading

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
ARCHITECTURES = ("standard", "gated", "topk", "jumprelu", "matching_pursuit")
"""Architectures whose features are read from one token's stream, are not negative, and reconstruct that stream."""
UNFOLDED = ("expected_average_only_in", "covariance_whitening")
"""Scalings of the stream that SAELens applies in training and leaves out when it encodes."""
FLOATS = ("F16", "BF16", "F32", "F64")
Shapes = Mapping[str, tuple[int, ...]]


def check_folder(folder: Path) -> None:
    """Raises UserError for a folder that lacks a file, or whose SAE would be read as another one than was trained."""
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(f"{folder} has no {name}: give a folder that SAELens' save_model wrote")
    config = read_object(folder / CONFIG, "config of an SAE in SAELens' format")
    where = str(folder / CONFIG)
    architecture = _architecture(config, where)
    check_scaling(_scaling(config), where)
    _check_about(config, where)
    if config.get("finetuning_scaling_factor"):
        raise UserError(f"{where}: finetuning_scaling_factor is set: fold the factors into the decoder's rows first")
    if config.get("d_out", config.get("d_in")) != config.get("d_in"):
        raise UserError(f"{where}: its output is of another width than its input: it is a transcoder, give an SAE")
    width, features = (_size(config, name, where) for name in ("d_in", "d_sae"))
    if architecture == "topk":
        _check_k(config, features, where)
    _check_shapes(folder / WEIGHTS, architecture, width, features)


def _check_about(config: Mapping[str, Any], where: str) -> None:
    """Raises UserError if the fields for the hook, the model and the labels have values of the wrong type."""
    about = config.get("metadata", config)
    if not isinstance(about, Mapping):
        raise UserError(f"{where}: metadata is {about!r} and should be an object: correct it")
    found = cast(Mapping[str, Any], about)
    for values, name, kind, meant in (
        (found, "hook_name", str, "a text"),
        (found, "model_name", str, "a text"),
        (found, "neuronpedia_id", str, "a text"),
        (found, "model_from_pretrained_kwargs", Mapping, "an object"),
        (config, "apply_b_dec_to_input", bool, "true or false"),
    ):
        value = values.get(name)
        if value is not None and not isinstance(value, kind):
            raise UserError(f"{where}: {name} is {value!r} and should be {meant}: correct it")


def check_scaling(normalisation: str, where: str) -> None:
    """Raises UserError for a scaling of the stream that is not folded into the weights."""
    if normalisation in UNFOLDED:
        raise UserError(
            f"{where}: normalize_activations is {normalisation}, and its factor is not in the weights, so that other "
            "features would be read: take the SAE that SAELens saved at the end of the training, or call its "
            "fold_activation_norm_scaling_factor (with whitening, fold_activation_whitening) and save it again"
        )


def _scaling(config: Mapping[str, Any]) -> str:
    found = config.get("normalize_activations") or "none"
    return UNFOLDED[0] if found is True else str(found)  # SAELens before 3.0 wrote true or false


def _architecture(config: Mapping[str, Any], where: str) -> str:
    found = config.get("architecture", "standard")
    function = config.get("activation_fn_str", config.get("activation_fn", "relu"))
    if function == "topk" and found == "standard":  # as SAELens before 6 wrote it
        return "topk"
    if found not in ARCHITECTURES:
        raise UserError(f"{where}: SAEs of architecture {found} cannot be read: give {', '.join(ARCHITECTURES)}")
    if function not in ("relu", "topk"):
        raise UserError(f"{where}: the activation function {function} is not one that can be read: give relu or topk")
    return str(found)


def _size(config: Mapping[str, Any], name: str, where: str) -> int:
    found = config.get(name)
    if isinstance(found, bool) or not isinstance(found, int) or found < 1:
        raise UserError(f"{where}: {name} is {found!r} and should be a whole number above 0: correct it")
    return found


def _check_k(config: Mapping[str, Any], features: int, where: str) -> None:
    options = config.get("activation_fn_kwargs") or {}
    k = config.get("k", options.get("k") if isinstance(options, dict) else None)
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= features:
        raise UserError(f"{where}: k is {k!r}, a topk SAE needs it, from 1 to {features}: write the k of its training")


def _check_shapes(path: Path, architecture: str, width: int, features: int) -> None:
    """Raises UserError unless the weights have the names, shapes and types that the config implies."""
    with reading(path, "file of weights in safetensors", SafetensorError), safe_open(path, framework="np") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        there = {name: tuple(each.get_shape()) for name, each in slices.items()}
        kinds = {name: str(each.get_dtype()) for name, each in slices.items()}
    for name, shape in _expected(architecture, width, features).items():
        if name not in there:
            raise UserError(f"{path} has no {name}, as {architecture} SAEs need (there are {', '.join(sorted(there))})")
        if there[name] != shape:
            raise UserError(f"{path}: {name} is {there[name]}, {CONFIG} makes it {shape}: they belong to other SAEs")
        if kinds[name] not in FLOATS:
            raise UserError(f"{path}: {name} is of type {kinds[name]}: give weights as floating-point numbers")


def _expected(architecture: str, width: int, features: int) -> Shapes:
    shared: Shapes = {"W_enc": (width, features), "W_dec": (features, width), "b_dec": (width,)}
    one = (features,)
    own: Mapping[str, Shapes] = {
        "gated": {"b_gate": one, "r_mag": one, "b_mag": one},
        "jumprelu": {"b_enc": one, "threshold": one},
        "matching_pursuit": {},
    }
    return {**shared, **own.get(architecture, {"b_enc": one})}
