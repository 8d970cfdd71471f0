"""A tiny model whose tokenizer treats blanks as sentencepiece does: one is put before a text and taken off again."""

from pathlib import Path
from string import ascii_letters, digits
from typing import Literal

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

Blanks = Literal["first", "legacy", "joined"]
"""first: a blank before the whole text only, as newer tokenizers have it. legacy: one after every special token too, as
Llama 2's. joined: as first, and a blank before a digit is one piece with it."""
SPECIAL = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"]

LAST_TURN = """{{- bos_token }}
{%- set system = messages[0].content if messages[0].role == 'system' else none %}
{%- for message in messages if message.role != 'system' %}
    {%- if message.role == 'assistant' %}{{- ' ' + message.content | trim + eos_token }}
    {%- elif loop.last and system %}{{- '[INST] ' + system + '\\n\\n' + message.content + '[/INST]' }}
    {%- else %}{{- '[INST] ' + message.content + '[/INST]' }}{%- endif %}
{%- endfor %}"""
"""Written for these tests: like Mistral 7B's, it writes the system text into a user turn only if that is the last."""


def piece_tokenizer(blanks: Blanks = "first", template: str = LAST_TURN) -> PreTrainedTokenizerFast:
    """Every letter, digit and sign is a piece; a line break and all else is bytes."""
    joined = [("▁", digit) for digit in digits] if blanks == "joined" else []
    merges = [("▁", "O"), ("w", "l"), *joined]
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    pieces = [*SPECIAL, *bytes_, "▁", *digits, *ascii_letters, *".,;:?!'-", *(a + b for a, b in merges)]
    tokenizer = Tokenizer(
        models.BPE({piece: at for at, piece in enumerate(pieces)}, merges, unk_token="<unk>", byte_fallback=True)
    )
    if blanks == "legacy":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        chat_template=template,
        clean_up_tokenization_spaces=False,
    )


def piece_model(folder: Path, blanks: Blanks = "first") -> Path:
    """A random model of two layers with that tokenizer."""
    tokenizer = piece_tokenizer(blanks)
    shape = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(shape)
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
