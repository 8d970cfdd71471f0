"""The import of labels against a real S3 server on this machine, with the bucket's layout."""

import gzip
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import httpx
import polars as pl
import pytest
from botocore.config import Config as ClientConfig

from sublim.digest import digest_directory
from sublim.errors import UserError
from sublim.neuronpedia import Label, choose, import_labels
from sublim.neuronpedia_config import LabelsConfig

BUCKET = "neuronpedia-datasets"
START = """
import sys, threading
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The address of an S3 server in a process of its own, which ends with this one."""
    server = subprocess.Popen([sys.executable, "-c", START], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdin is not None
    assert server.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(server.stdout.readline())}"
    finally:
        server.stdin.close()
        server.wait(20)


class Bucket:
    """The bucket as its owner sees it."""

    def __init__(self, url: str) -> None:
        self.url = url
        httpx.post(f"{url}/moto-api/reset")
        self.client: Any = boto3.client(
            "s3",
            endpoint_url=url,
            region_name="us-east-1",
            aws_access_key_id="x",
            aws_secret_access_key="x",
            config=ClientConfig(s3={"addressing_style": "path"}),
        )
        self.client.create_bucket(Bucket=BUCKET, ACL="public-read")

    def put(self, name: str, body: bytes, model: str = "m", source: str = "9-res-16k") -> None:
        self.client.put_object(Bucket=BUCKET, Key=f"v1/{model}/{source}/explanations/{name}", Body=body)

    def config(self, **settings: Any) -> LabelsConfig:
        return LabelsConfig.model_validate({"model": "m", "source": "9-res-16k", "endpoint": self.url, **settings})


@pytest.fixture
def bucket(s3: str) -> Bucket:
    return Bucket(s3)


def packed(*rows: dict[str, Any]) -> bytes:
    return gzip.compress(b"".join(json.dumps(row).encode() + b"\n" for row in rows), mtime=0)


def row(index: int | str, text: str, **more: Any) -> dict[str, Any]:
    return {"modelId": "m", "layer": "9-res-16k", "index": index, "description": text, **more}


def imported(tmp_path: Path, config: LabelsConfig, name: str = "a") -> Path:
    out, scratch = tmp_path / f"out-{name}", tmp_path / f"scratch-{name}"
    out.mkdir()
    scratch.mkdir(exist_ok=True)
    import_labels(out, config, scratch=scratch)
    return out


def test_more_files_than_one_page_lists_are_all_taken(bucket: Bucket, tmp_path: Path) -> None:
    """A page has 1,000 keys at most; the bytes do not depend on how many fetch at a time."""
    for number in range(1_005):
        bucket.put(f"batch-{number}.jsonl.gz", packed(row(str(number), f"text {number}")))
    notes = tmp_path / "n"
    notes.mkdir()
    found = import_labels(notes, bucket.config(workers=8), scratch=tmp_path)
    assert (found["files"], found["features"]) == (1_005, 1_005)
    table = pl.read_parquet(notes / "labels.parquet")
    assert table["feature"].to_list() == list(range(1_005))
    assert table["description"][1_004] == "text 1004"
    assert table.schema["feature"] == pl.UInt32


def test_bytes_do_not_depend_on_the_order_of_arrival(bucket: Bucket, tmp_path: Path) -> None:
    rows = [row(n % 7, f"text {n}", explanationModelName="ab"[n % 2], score=n % 3 / 2) for n in range(40)]
    for number in range(8):
        bucket.put(f"batch-{number}.jsonl.gz", packed(*rows[number::8]))
    first = imported(tmp_path, bucket.config(workers=1), "one")
    for number in range(8):
        bucket.put(f"batch-{7 - number}.jsonl.gz", packed(*reversed(rows[number::8])))
    second = imported(tmp_path, bucket.config(workers=8), "many")
    assert digest_directory(first) == digest_directory(second)


def test_every_explanation_is_kept_and_one_chosen_by_the_stated_rule() -> None:
    labels = {
        Label(3, "unscored", "best", None),
        Label(3, "low", "best", 0.1),
        Label(3, "high", "other", 0.9),
        Label(5, "b", "other", None),
        Label(5, "a", "later", None),
        Label(5, "preferred", "best", None),
        Label(7, "zz", None, None),
        Label(7, "aa", None, None),
        Label(8, "below zero", None, -0.5),
        Label(8, "unscored", None, None),
    }
    table = choose(labels, ("best",))
    assert len(table) == len(labels)
    chosen = table.filter("chosen")
    texts = dict(chosen.select("feature", "description").iter_rows())
    assert texts == {3: "high", 5: "preferred", 7: "aa", 8: "below zero"}


def test_a_missing_prefix_says_what_is_near(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put("batch-0.jsonl.gz", packed(row(0, "x")), source="20-res-16k")
    with pytest.raises(UserError, match=r"9-res-16k/explanations/ is empty; v1/m/ has 20-res-16k"):
        imported(tmp_path, bucket.config())
    with pytest.raises(UserError, match=r"is empty; v1/ has m"):
        imported(tmp_path, bucket.config(model="gpt"), "b")
    with pytest.raises(UserError, match=r"no-such-bucket refused.*NoSuchBucket"):
        imported(tmp_path, bucket.config(bucket="no-such-bucket"), "c")


@pytest.mark.parametrize("name", ["../../../escaped.jsonl.gz", "a/../../x.jsonl.gz", "..\\x.jsonl.gz"])
def test_an_entry_that_leaves_its_folder_is_refused(bucket: Bucket, tmp_path: Path, name: str) -> None:
    bucket.put("batch-0.jsonl.gz", packed(row(0, "x")))
    bucket.put(name, packed(row(1, "y")))
    with pytest.raises(UserError, match="leaves its folder"):
        imported(tmp_path, bucket.config())
    assert not list(tmp_path.rglob("*.parquet"))


def test_an_archive_is_read_and_one_that_leaves_its_folder_refused(bucket: Bucket, tmp_path: Path) -> None:
    def archive(name: str) -> bytes:
        whole, body = io.BytesIO(), packed(row(4, "in an archive"))
        with tarfile.open(fileobj=whole, mode="w:gz") as tar:
            member = tarfile.TarInfo(name)
            member.size = len(body)
            tar.addfile(member, io.BytesIO(body))
        return whole.getvalue()

    bucket.put("all.tar.gz", archive("part/batch-0.jsonl.gz"))
    table = pl.read_parquet(imported(tmp_path, bucket.config()) / "labels.parquet")
    assert table.row(0) == (4, "in an archive", True, None, None)
    bucket.put("all.tar.gz", archive("../escaped.jsonl.gz"))
    with pytest.raises(UserError, match="leaves its folder"):
        imported(tmp_path, bucket.config(), "b")
    assert not list(tmp_path.rglob("escaped*"))


def test_damage_is_named_and_the_file_fetched_anew(bucket: Bucket, tmp_path: Path) -> None:
    whole = packed(row(0, "x" * 1000), row(1, "y"))
    for broken, message in [
        (whole[:-9], r"batch-0.jsonl.gz is damaged or cut short"),
        (b"not gzip", r"batch-0.jsonl.gz is damaged or cut short"),
        (gzip.compress(b'{"index": 1, "description": "x"}\n{"index"'), r"batch-0.jsonl.gz:2 is not JSON"),
        (packed({"description": "of nothing"}), r"batch-0.jsonl.gz:1 has no index"),
        (packed(row(-1, "of nothing")), r"batch-0.jsonl.gz:1 has no index"),
    ]:
        bucket.put("batch-0.jsonl.gz", broken)
        (tmp_path / "out-a").rmdir() if (tmp_path / "out-a").exists() else None
        with pytest.raises(UserError, match=message):
            imported(tmp_path, bucket.config())
    bucket.put("batch-0.jsonl.gz", whole)
    (tmp_path / "out-a").rmdir()
    assert len(pl.read_parquet(imported(tmp_path, bucket.config()) / "labels.parquet")) == 2


class Breaking(ThreadingHTTPServer):
    """Hands requests to the S3 server, and breaks off the first so many answers with a body in the middle."""

    daemon_threads = True

    def __init__(self, behind: str, breaks: int) -> None:
        super().__init__(("127.0.0.1", 0), _Proxy)
        self.behind, self.breaks, self.ranges = behind, breaks, list[str | None]()
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Proxy(BaseHTTPRequestHandler):
    server: Breaking

    def do_GET(self) -> None:
        headers = {name: value for name, value in self.headers.items() if name.lower() != "accept-encoding"}
        answer = httpx.get(self.server.behind + self.path, headers=headers | {"accept-encoding": "identity"})
        body = answer.content
        is_file = ".jsonl.gz" in self.path
        self.send_response(answer.status_code)
        for name, value in answer.headers.items():
            if name.lower() in ("content-type", "etag", "content-range"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if is_file:
            self.server.ranges.append(self.headers.get("Range"))
            if self.server.breaks > 0:
                self.server.breaks -= 1
                body = body[: len(body) // 2]
        self.wfile.write(body)
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


def test_a_broken_download_goes_on_where_it_broke(bucket: Bucket, tmp_path: Path) -> None:
    body = packed(*(row(n, os.urandom(40).hex()) for n in range(200)))
    bucket.put("batch-0.jsonl.gz", body)
    server = Breaking(bucket.url, breaks=2)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        with pytest.raises(UserError, match=rf"broke off at {len(body) // 2} of {len(body)} bytes.*what came is kept"):
            imported(tmp_path, bucket.config(endpoint=server.url, attempts=1))
        (tmp_path / "out-a").rmdir()
        out = imported(tmp_path, bucket.config(endpoint=server.url, attempts=3))
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    half = len(body) // 2
    assert server.ranges == [None, f"bytes={half}-", f"bytes={half + (len(body) - half) // 2}-"]
    assert len(pl.read_parquet(out / "labels.parquet")) == 200


def test_what_a_killed_run_fetched_is_not_fetched_again(bucket: Bucket, tmp_path: Path) -> None:
    for number in range(3):
        bucket.put(f"batch-{number}.jsonl.gz", packed(row(number, "x")))
    code = (
        "import sys; from pathlib import Path; from sublim.neuronpedia import import_labels; "
        "from sublim.neuronpedia_config import LabelsConfig; "
        "import_labels(Path(sys.argv[1]), LabelsConfig.model_validate_json(sys.argv[2]), scratch=Path(sys.argv[3]))"
    )
    config = bucket.config(workers=1)
    scratch = tmp_path / "scratch-a"
    scratch.mkdir()
    (tmp_path / "out-k").mkdir()
    killed = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "out-k"), config.model_dump_json(), str(scratch)],
        env={**os.environ, "SUBLIM_KILL_AT": "labels:file"},
        check=False,
    )
    assert killed.returncode == -9
    [kept] = (scratch / "files").iterdir()
    before = kept.stat().st_mtime_ns
    time.sleep(0.01)
    table = pl.read_parquet(imported(tmp_path, config) / "labels.parquet")
    assert table["feature"].to_list() == [0, 1, 2]
    assert kept.stat().st_mtime_ns == before


def test_a_name_may_not_climb() -> None:
    with pytest.raises(ValueError, match="a way up"):
        LabelsConfig(model="..")
