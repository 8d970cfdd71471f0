"""Writing a bundled model's GGUF file as a Hugging Face directory in float32."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GgufConfig, PreTrainedTokenizerFast

from sublim.models.files import write_config, write_generation_config, write_identity, write_json


def write_dequantised(
    gguf: Path, out: Path, tokenizer: PreTrainedTokenizerFast, settings: dict[str, Any], *, name: str
) -> None:
    """Writes weights, tokenizer and configs to `out`.

    `settings`: fields of tokenizer_config.json, among them the special tokens, whose ids go into the other configs.
    """
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    eos, pad, bos = (tokenizer.get_vocab()[settings[f"{kind}_token"]] for kind in ("eos", "pad", "bos"))
    model.config.update({"eos_token_id": eos, "pad_token_id": pad, "bos_token_id": bos})
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    fixed = {"clean_up_tokenization_spaces": False, "tokenizer_class": "PreTrainedTokenizerFast"}
    write_json(out / "tokenizer_config.json", settings | fixed)
    write_config(out, drop=["quantization_config"])
    write_generation_config(out, eos=[eos], pad=pad, bos=[bos])
    write_identity(out, name)
