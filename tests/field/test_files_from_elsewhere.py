"""Files that users bring: what is wrong with one is said in one line with its name; one bad line bars no other."""

import gzip
import io
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import save_file

from flows.runs.settings import assignments, load_preset, read_tree
from flows.sae_analysis.labels import label_table
from sublim.core.errors import UserError
from sublim.evals.mmlu_pro.questions import read_parquet
from sublim.features.labels.annotate import take_labels
from sublim.features.labels.config import TakeLabelsConfig
from sublim.features.labels.neuronpedia import import_labels
from sublim.models.import_weights import ImportWeightsConfig, adapter_files
from sublim.residual.vectors import read_vectors
from sublim.sae.texts import import_texts, read_rows
from sublim.sae.texts_config import ImportTextsConfig
from sublim.search.config import StudyConfig
from sublim.toys.mnist.config import IDX_FILES, IdxFolder, PrepareDigitsConfig
from sublim.toys.mnist.digits import prepare_digits, to_idx
from sublim.traits.questions import load_questions
from tests.sublim.store.buckets import s3_server

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0a" * 32 + b"\nsize 75000000\n"


def one_line(caught: pytest.ExceptionInfo[UserError], path: Path) -> str:
    told = str(caught.value)
    assert str(path) in told
    assert "\n" not in told
    return told


def numpy_file() -> bytes:
    file = io.BytesIO()
    np.savez(file, v=np.ones(4))
    return file.getvalue()


READERS: dict[str, Callable[[Path], Any]] = {
    "vectors.safetensors": read_vectors,
    "questions.parquet": lambda path: list(read_parquet(path)),
    "labels.parquet": lambda path: label_table(path.parent),
    "texts.parquet": lambda path: list(read_rows(path)),
    "texts.jsonl": lambda path: list(read_rows(path)),
    "settings.yaml": read_tree,
    "questions.yaml": lambda path: load_questions(str(path)),
    "questions.json": lambda path: load_questions(str(path)),
}
CONTENTS = {
    "a Git LFS pointer": (POINTER, "Git LFS pointer .*git lfs pull"),
    "zip": (numpy_file(), "zip archive|is not"),
    "gzip": (gzip.compress(b"feature,description\n1,owls\n"), "gzip|is not"),
    "a web page": (b"<!DOCTYPE html><html>404</html>", "web page|is not|holds no settings|must hold"),
    "UTF-16": ("feature: 1\n".encode("utf-16"), "UTF-16|is not"),
    "a huge header": (struct.pack("<Q", 10 << 30) + b"{}", "is not"),
}


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("name", READERS)
def test_file_of_another_format_is_refused_in_one_line_with_its_name(name: str, content: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(CONTENTS[content][0])
    if (name, content) == ("settings.yaml", "UTF-16"):  # which YAML allows
        assert READERS[name](path) == {"feature": 1}
        return
    with pytest.raises(UserError, match=CONTENTS[content][1]) as caught:
        READERS[name](path)
    one_line(caught, path)


@pytest.mark.parametrize("name", [name for name in READERS if name != "labels.parquet"])
def test_missing_file_and_folder_in_its_place_are_told_apart(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no such file|is not a"):
        READERS[name](tmp_path / name)
    if name != "vectors.safetensors":  # there a folder is a payload
        (tmp_path / name).mkdir()
        with pytest.raises(UserError, match="is a folder"):
            READERS[name](tmp_path / name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_file_that_may_not_be_read_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text("rank: 8\n")
    (tmp_path / "settings.yaml").chmod(0)
    with pytest.raises(UserError, match=r"cannot be read \(Permission denied\)"):
        read_tree(tmp_path / "settings.yaml")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("rank: 8\nrank: 16\n", "'rank' is there twice"),
        ("a: {x: 1, x: 2}\n", "'x' is there twice"),
        ("day: 2024-13-45\n", "is not YAML"),
        ("a:\n\tb: 1\n", "is not YAML"),
        ("- a\n- b\n", "holds no settings"),
        ("", "holds no settings"),
    ],
)
def test_settings_that_say_two_things_or_none_are_refused(text: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=told) as caught:
        read_tree(path)
    one_line(caught, path)


@pytest.mark.parametrize("text", ["extends: 3\n", "extends: [dose]\n"])
def test_preset_that_extends_no_name_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(UserError, match="should be the name of one preset"):
        load_preset("pipeline", str(tmp_path / "s.yaml"))


def test_settings_with_byte_order_mark_windows_line_ends_and_merged_keys_are_read(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_bytes(b"\xef\xbb\xbfbase: &b {x: 1, y: 2}\r\nown:\r\n  <<: *b\r\n  x: 3\r\n")
    assert read_tree(tmp_path / "s.yaml")["own"] == {"x": 3, "y": 2}


@pytest.mark.parametrize("word", ["no", "2024-05-01", "1984", "on"])
def test_word_that_yaml_takes_for_something_else_is_to_be_put_in_quotes(word: str, tmp_path: Path) -> None:
    path = tmp_path / "q.yaml"
    path.write_text(f"category: animal\nwords: [owl]\nevaluation: [Which one, {word}]\nteacher: []\n")
    with pytest.raises(UserError, match="put quotes around it") as caught:
        load_questions(str(path))
    one_line(caught, path)


def test_name_that_is_twice_in_a_json_file_or_a_setting_is_refused(tmp_path: Path) -> None:
    (tmp_path / "q.json").write_text('{"category": "animal", "category": "tree"}')
    with pytest.raises(UserError, match="'category' is there twice"):
        load_questions(str(tmp_path / "q.json"))
    with pytest.raises(UserError, match="not YAML"):
        assignments(StudyConfig, ["settings={a: 1, a: 2}"])


@pytest.mark.parametrize(
    ("metadata", "tensor", "stated", "told"),
    [
        ({"site": "resid_post", "layer": "1"}, torch.ones(4, dtype=torch.int8), {}, "int8: give floating-point"),
        ({"site": "resid_post", "layer": "1"}, torch.ones(4), {"layer": 2}, "says layer 1, the settings say 2"),
        ({"vectors": "[1, 2]"}, torch.ones(4), {}, "not a JSON object"),
        ({"vectors": '{"v": 3}'}, torch.ones(4), {}, "note of vector 'v'"),
        ({"vectors": '{"v": '}, torch.ones(4), {}, "is not a safetensors file of vectors"),
        ({"site": "resid_post"}, None, {}, "holds no tensor"),
        ({"site": "resid_post", "layer": "1"}, torch.ones(2, 4), {}, r"'v' has shape \(2, 4\), a vector has one"),
        ({"site": "resid_post", "layer": "1"}, torch.tensor(1.0), {}, r"'v' has shape \(\), a vector has one"),
        ({"site": "resid_post", "layer": "1"}, torch.ones(0), {}, r"'v' has shape \(0,\), a vector has one"),
        ({"site": "resid_post", "layer": "1"}, torch.zeros(4), {}, "'v': the steering vector is zero"),
        ({"site": "resid_post", "layer": "1", "residual_norm": "0"}, torch.ones(4), {}, r"\(residual_norm\)"),
        ({"site": "resid_post", "layer": "1", "residual_norm": "-3"}, torch.ones(4), {}, r"\(residual_norm\)"),
    ],
)
def test_vector_whose_numbers_or_place_are_in_doubt_is_refused(
    metadata: dict[str, str], tensor: torch.Tensor | None, stated: dict[str, Any], told: str, tmp_path: Path
) -> None:
    path = tmp_path / "v.safetensors"
    save_file({} if tensor is None else {"v": tensor}, path, metadata)
    with pytest.raises(UserError, match=told) as caught:
        read_vectors(path, stated)
    one_line(caught, path)


def test_vector_that_kept_an_axis_of_one_is_read(tmp_path: Path) -> None:
    save_file({"v": torch.ones(1, 4)}, tmp_path / "v.safetensors", {"site": "resid_post", "layer": "1"})
    assert read_vectors(tmp_path / "v.safetensors")["v"].values.tolist() == [1.0] * 4


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"index": [1], "description": ["a"]}, r"has no column feature: .*its columns are index, description"),
        ({"feature": [1, -1], "description": ["a", "b"]}, r"row 1 has feature = -1"),
        ({"feature": [1.0, 2.5], "description": ["a", "b"]}, r"row 1 has feature = 2\.5"),
        ({"feature": ["1", "x"], "description": ["a", "b"]}, r"row 1 has feature = 'x'"),
        ({"feature": [True], "description": ["a"]}, "column feature holds Boolean"),
        ({"feature": [1, None], "description": ["a", "b"]}, "row 1 has no number"),
        ({"feature": [1], "description": [7]}, "column description holds Int64"),
        ({"feature": [1, 1], "description": ["a", "b"], "chosen": [True, True]}, "two rows of feature 1 are chosen"),
        ({"feature": [1, 1], "description": ["a", "b"], "layer": [9, 20]}, "labels of layers 9, 20"),
        ({"feature": [1, 2], "description": [None, " "]}, "no row has a description"),
        ({"feature": [1], "description": ["a"], "chosen": [False]}, "no row with a description is chosen"),
    ],
)
def test_labels_that_could_be_of_another_feature_are_refused(
    columns: dict[str, Any], told: str, tmp_path: Path
) -> None:
    path = tmp_path / "labels.parquet"
    pl.DataFrame(columns).write_parquet(path)
    with pytest.raises(UserError, match=told) as caught:
        label_table(tmp_path)
    one_line(caught, path)


def test_labels_without_a_description_are_left_out_and_text_numbers_are_read(tmp_path: Path) -> None:
    table = {"feature": ["3", "4", "5", "3"], "description": ["owls", None, " ", "again"], "layer": [9, 9, 9, 20]}
    pl.DataFrame(table).write_parquet(tmp_path / "labels.parquet")
    assert {feature: label.text for feature, label in label_table(tmp_path, 9).items()} == {3: "owls"}
    with pytest.raises(UserError, match="none of layer 7"):
        label_table(tmp_path, 7)
    out = tmp_path / "out"
    out.mkdir()
    take_labels(out, TakeLabelsConfig(path=tmp_path / "labels.parquet"), scratch=tmp_path)
    taken = pl.read_parquet(out / "labels.parquet")
    assert taken["feature"].to_list() == [3, 3]
    assert taken["feature"].dtype == pl.UInt32


def test_adapter_whose_files_are_not_there_whole_is_refused_before_anything_runs(tmp_path: Path) -> None:
    save_file({"v": torch.ones(64)}, tmp_path / "adapter_model.safetensors")
    whole = (tmp_path / "adapter_model.safetensors").read_bytes()
    (tmp_path / "adapter_config.json").write_text("{}")
    assert len(adapter_files(tmp_path)) == 2
    for name, content in (
        ("adapter_model.safetensors", whole[:-8]),
        ("adapter_model.safetensors", POINTER),
        ("adapter_config.json", b'{"r": 8'),
        ("adapter_config.json", POINTER),
    ):
        before = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=name) as caught:
            ImportWeightsConfig(path=tmp_path).identity()
        one_line(caught, tmp_path / name)
        (tmp_path / name).write_bytes(before)


def test_spoiled_lines_of_neuronpedia_are_mended_or_left_out_and_counted(tmp_path: Path) -> None:
    lines = [
        rb'{"index":"1","description":"owls"}',
        rb'{"index":"2","description":"birds of prey \ud83e"}',
        rb'{"index":"3","description":"digits","scoreV1":NaN}',
        rb'{"index":"4","description":"lists","scoreV1":-Infinity}',
        b'{"index":"5","description":"cut in \xe3\x81"}',
        b'{"index":"6","description":"a\ttab"}',
        rb'{"index":null,"description":"a vector"}',
        rb'{"index":"7","description":null}',
    ]
    out, scratch = tmp_path / "out", tmp_path / "scratch"
    out.mkdir()
    scratch.mkdir()
    with s3_server(tmp_path / "moto.log") as s3:
        config = s3.config("9-x")
        s3.put({f"{config.prefix}batch-0.jsonl.gz": gzip.compress(b"\r\n".join(lines))})
        notes = import_labels(out, config, scratch=scratch)
    table = pl.read_parquet(out / "labels.parquet").sort("feature")
    assert table["feature"].to_list() == [1, 2, 3, 4, 5, 6]
    assert table["score"].to_list() == [None] * 6
    assert table["description"][1] == "birds of prey \ufffd"
    assert (notes["mended"], notes["without_feature"], notes["without_text"]) == (5, 1, 1)


def test_texts_with_a_byte_order_mark_begin_without_it(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "one"}\n')
    (tmp_path / "t.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n")
    assert list(read_rows(tmp_path / "t.jsonl")) == [{"text": "one"}]
    assert [row["text"] for row in read_rows(tmp_path / "t.txt")] == ["one", "two", ""]
    (tmp_path / "latin.txt").write_bytes("Käuze".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin\.txt is not a text file"):
        import_texts(tmp_path, ImportTextsConfig(path=tmp_path / "latin.txt"), scratch=tmp_path)


def test_digits_are_unpacked_by_what_is_in_the_file_and_not_by_its_name(tmp_path: Path) -> None:
    images, labels = np.zeros((2, 3, 3), np.uint8), np.array([1, 2], np.uint8)
    contents = [to_idx(part) for part in (images, labels, images, labels)]
    for name, content in zip(IDX_FILES, contents, strict=True):
        (tmp_path / name).write_bytes(gzip.compress(content))  # a packed file without .gz
    config = PrepareDigitsConfig(source=IdxFolder(path=tmp_path))
    out = tmp_path / "out"
    out.mkdir()
    assert prepare_digits(out, config, scratch=tmp_path)["train"] == 2
    for bad in (gzip.compress(contents[0]) + b"rest", POINTER, contents[0][:-1], b"\0\0\x08\x29" + bytes(4 * 0x29)):
        (tmp_path / IDX_FILES[0]).write_bytes(bad)
        with pytest.raises(UserError, match=IDX_FILES[0]):
            prepare_digits(out, config, scratch=tmp_path)
