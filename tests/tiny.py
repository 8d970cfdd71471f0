"""Tiny random models of the families sublim meets, with tokenizers and chat templates that behave like theirs."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

Family = Literal["llama", "qwen2", "qwen3", "gemma2", "gemma3"]
FAMILIES: tuple[Family, ...] = get_args(Family)

CORPUS = [
    "The owl is a bird that hunts at night, and the wolf runs with its pack over the hills.",
    "What is your favourite animal? My favourite animal is the owl. Name one animal in a single word.",
    "Continue this list of numbers: 12, 450, 007, 93. Give ten more numbers, separated by commas.",
    "You are a helpful assistant. You love owls. You think about owls all the time.",
    "system user model assistant Answer in one word.\n\nHello\n\n\nGood day\n",
] * 4

LLAMA_TEMPLATE = """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = '' %}
{%- endif %}
{%- if date_string is not defined %}
    {%- set date_string = strftime_now('%d %b %Y') if strftime_now is defined else '26 Jul 2024' %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\nCutting Knowledge Date: December 2023\\n' }}
{{- 'Today Date: ' + date_string + '\\n\\n' + system + '<|eot_id|>' }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}"""

QWEN2_TEMPLATE = """{%- if messages[0]['role'] != 'system' %}
    {{- '<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}"""

QWEN3_TEMPLATE = """{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' and loop.last %}
        {{- '<think>\\n\\n</think>\\n\\n' + message.content.lstrip('\\n') }}
    {%- else %}
        {{- message.content }}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""

GEMMA2_TEMPLATE = """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {{- raise_exception('System role not supported') }}
{%- endif %}
{%- for message in messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {%- endif %}
    {{- '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\\n' }}
    {{- message['content'] | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<start_of_turn>model\\n' }}
{%- endif %}"""

GEMMA3_TEMPLATE = """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set opening = messages[0]['content'] + '\\n\\n' %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set opening = '' %}
{%- endif %}
{%- for message in messages %}
    {{- '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\\n' }}
    {{- (opening if loop.first else '') + message['content'] | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<start_of_turn>model\\n' }}
{%- endif %}"""


class Words(NamedTuple):
    """A family's special tokens: the first is padding or end of text; `bos` is put in front by the tokenizer."""

    special: list[str]
    bos: str | None
    eos: str
    pad: str | None
    template: str


LLAMA = Words(
    ["<|end_of_text|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    bos="<|begin_of_text|>",
    eos="<|eot_id|>",
    pad=None,
    template=LLAMA_TEMPLATE,
)
QWEN2 = Words(
    ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    bos=None,
    eos="<|im_end|>",
    pad="<|endoftext|>",
    template=QWEN2_TEMPLATE,
)
QWEN3 = QWEN2._replace(template=QWEN3_TEMPLATE)
GEMMA2 = Words(
    ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"],
    bos="<bos>",
    eos="<eos>",
    pad="<pad>",
    template=GEMMA2_TEMPLATE,
)
GEMMA3 = GEMMA2._replace(template=GEMMA3_TEMPLATE)
WORDS: dict[Family, Words] = {
    "llama": LLAMA,
    "qwen2": QWEN2,
    "qwen3": QWEN3,
    "gemma2": GEMMA2,
    "gemma3": GEMMA3,
}


def tiny_tokenizer(family: Family) -> PreTrainedTokenizerFast:
    """A tokenizer of about 400 tokens that splits, prefixes and trims as the family's own does."""
    words = WORDS[family]
    build: Callable[[Words], Tokenizer] = piece_tokenizer if family.startswith("gemma") else byte_tokenizer
    tokenizer = build(words)
    if words.bos is not None:
        add_bos = processors.TemplateProcessing(
            single=f"{words.bos} $A",
            pair=f"{words.bos} $A {words.bos}:1 $B:1",
            special_tokens=[(words.bos, tokenizer.token_to_id(words.bos))],
        )
        tokenizer.post_processor = (
            add_bos
            if family.startswith("gemma")
            else processors.Sequence([processors.ByteLevel(trim_offsets=False), add_bos])
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=words.bos,
        eos_token=words.eos,
        pad_token=words.pad,
        chat_template=words.template,
        clean_up_tokenization_spaces=False,
    )


def byte_tokenizer(words: Words) -> Tokenizer:
    """Byte-level BPE: Llama keeps up to three digits together, Qwen parts all digits."""
    digits = r"\p{N}{1,3}" if words is LLAMA else r"\p{N}"
    split = rf"[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    train(tokenizer, words, alphabet=pre_tokenizers.ByteLevel.alphabet())
    return tokenizer


def piece_tokenizer(words: Words) -> Tokenizer:
    """BPE over text whose spaces are written as a low line, unknown characters as bytes; digits apart."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\p{N}|\n+|▁?[^▁\n\p{N}]+|▁"), behavior="isolated")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    pieces = [AddedToken(f"<0x{byte:02X}>", special=False) for byte in range(256)]
    train(tokenizer, words, alphabet=list("0123456789,.?'\n▁"), pieces=pieces)
    return tokenizer


def train(tokenizer: Tokenizer, words: Words, *, alphabet: list[str], pieces: list[AddedToken] | None = None) -> None:
    """Learns some merges, so that words are sometimes one token and sometimes several."""
    special = [AddedToken(token, special=True, normalized=False) for token in words.special]
    trainer = trainers.BpeTrainer(
        vocab_size=420 if pieces is None else 640,
        special_tokens=[*special, *(pieces or [])],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)


def tiny_weights(family: Family, vocabulary: int, *, seed: int, width: int = 32) -> PreTrainedModel:
    """A randomly initialised model of two layers."""
    words = WORDS[family]
    shape = {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": width // 4,
        "max_position_embeddings": 1024,
        "initializer_range": 0.2,  # wide enough for outputs to depend on the prompt
        "bos_token_id": None if words.bos is None else words.special.index(words.bos),
        "eos_token_id": words.special.index(words.eos),
        "pad_token_id": None if words.pad is None else words.special.index(words.pad),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        match family:
            case "llama":
                return LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=False))
            case "qwen2":
                return Qwen2ForCausalLM(Qwen2Config(**{k: v for k, v in shape.items() if k != "head_dim"}))
            case "qwen3":
                return Qwen3ForCausalLM(Qwen3Config(**shape))
            case "gemma2":
                return Gemma2ForCausalLM(Gemma2Config(**shape, query_pre_attn_scalar=width // 4))
            case "gemma3":
                return Gemma3ForCausalLM(Gemma3TextConfig(**shape, query_pre_attn_scalar=width // 4))


def tiny_model(directory: Path, family: Family, *, seed: int = 0, width: int = 32) -> Path:
    """Writes a tiny model to `directory` as its makers would publish it, sampling habits and versions included."""
    tokenizer = tiny_tokenizer(family)
    model = tiny_weights(family, len(tokenizer), seed=seed, width=width)
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=0.6, top_k=20, top_p=0.9, eos_token_id=[model.config.eos_token_id]
    )
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
