"""A whole pipeline with secrets in every variable that is known to hold one: no byte that it writes has them."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from flows.__main__ import main
from sublim.store.s3 import Bucket
from tests.flows.conftest import small_options
from tests.sublim.backends.servers import Reply, Seen, said, scripted

PLANTED = {
    "AWS_ACCESS_KEY_ID": "AKIA-pl4nt3d",
    "AWS_SECRET_ACCESS_KEY": "pl4nt3d-aws-secret",
    "AWS_SESSION_TOKEN": "pl4nt3d-session-token",
    "OPENAI_API_KEY": "sk-pl4nt3d-openai",
    "HF_TOKEN": "hf_pl4nt3d",
    "HUGGING_FACE_HUB_TOKEN": "hf_pl4nt3d",
    "PGPASSWORD": "pl4nt3d-postgres",
    "PREFECT_API_KEY": "pnu_pl4nt3d",
    "PREFECT_API_AUTH_STRING": "admin:pl4nt3d-auth",
    "WANDB_API_KEY": "pl4nt3d-wandb",
    "ANTHROPIC_API_KEY": "pl4nt3d-anthropic",
    "NEURONPEDIA_API_KEY": "pl4nt3d-neuronpedia",
}
ASK = """
import json, sys
from pathlib import Path
from prefect import flow
from flows.runs.record import recorded
from sublim.rows.generate import GenerateConfig
from sublim.inference.config import OpenAIBackend, SamplingParams
from sublim.models.config import LocalModel, PrepareModelConfig
from sublim.carriers.number_prompts import NumberPrompts, load_number_templates
from tasks.stages import generate_numbers, prepare_model

@flow
def ask():
    with recorded("ask", "none", "owl"):
        base = prepare_model(PrepareModelConfig(source=LocalModel(path=Path(sys.argv[1]))))
        prompts = NumberPrompts(templates=load_number_templates("numbers"))
        backend = OpenAIBackend(base_url=sys.argv[2], model="m")
        config = GenerateConfig(prompts=prompts, n_prompts=5, backend=backend, sampling=SamplingParams(max_tokens=60))
        return generate_numbers(config, base=base)

print(json.dumps({"stage": ask().stage}))
"""
NUMBERS = "112, 345, 672, 218, 934, 450, 761, 823, 590, 147"


def answered(number: int, request: Seen) -> Reply:
    return said(NUMBERS.replace("112", f"{100 + number % 900}"), usage={"total_tokens": 60})


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_planted_secrets_are_in_nothing_that_a_run_writes(
    prefect_server: str, s3_store: str, published: Path, tmp_path: Path
) -> None:
    def run(machine: str, *command: str) -> tuple[dict[str, Any], bytes]:
        environment = os.environ | PLANTED | {
            "SUBLIM_STORE": s3_store,
            "SUBLIM_CACHE": str(tmp_path / machine),
            "HOME": str(tmp_path / machine),
            "XDG_CACHE_HOME": str(tmp_path / machine / "cache"),
            "PREFECT_API_URL": prefect_server,
            "PREFECT_LOGGING_TO_API_ENABLED": "true",
        }  # fmt: skip
        (tmp_path / machine).mkdir(exist_ok=True)
        done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()[-3000:]
        return json.loads(done.stdout.splitlines()[-1]), done.stdout + done.stderr

    options = [*small_options(published), "--set", "teacher={kind: prompt}", "--set", "seeds=[0]", "--json"]
    first, said_first = run("a", "-m", "flows", "run", "pipeline", *options)
    with scripted(answered) as server, ThreadPoolExecutor(2) as pool:
        again = pool.submit(run, "b", "-m", "flows", "run", "pipeline", *options)
        asked, said_asked = run("a", "-c", ASK, str(published), server.url)
        second, said_second = again.result()
        assert {request.headers["Authorization"] for request in server.seen} == {"Bearer sk-pl4nt3d-openai"}
    assert {stage["state"] for stage in first["stages"]} == {"Completed"}
    assert {stage["state"] for stage in second["stages"]} == {"Cached"}
    assert asked == {"stage": "generate_numbers"}

    bucket = Bucket(s3_store)
    assert all(b"pl4nt3d" in value.encode() for value in PLANTED.values())
    written = {"output of a": said_first, "output of b": said_second, "output of asking": said_asked, **files(tmp_path)}
    for item in bucket.list():
        stored = bucket.get(item.name)
        assert stored is not None
        written[f"{s3_store}/{item.name}"] = stored.body + item.name.encode()
    written |= files(Path(os.environ["PREFECT_HOME"]))  # the server's database and log
    assert any(name.endswith("prefect.db") for name in written)
    assert sum(name.endswith("manifest.json") for name in written) >= 3 * len(first["stages"])
    assert sum(name.endswith("report.html") for name in written) >= 3
    assert [name for name, content in written.items() if b"pl4nt3d" in content] == []


def test_address_with_a_password_is_refused_without_showing_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://admin:pl4nt3d-url@127.0.0.1:1/api")
    assert main(["run", "pipeline"]) == 2
    monkeypatch.setenv("SUBLIM_STORE", "s3://me:pl4nt3d@bucket/prefix")
    assert main(["store", "ls"]) == 2
    told = capsys.readouterr().err
    assert "PREFECT_API_AUTH_STRING" in told
    assert "AWS_ACCESS_KEY_ID" in told
    assert "pl4nt3d" not in told


def test_the_search_for_secrets_would_find_one(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "log").write_text("Authorization: pl4nt3d-auth")
    assert [name for name, content in files(tmp_path).items() if b"pl4nt3d" in content] == [
        str(tmp_path / "deep" / "log")
    ]
