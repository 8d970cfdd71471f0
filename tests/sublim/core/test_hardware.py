import os
import subprocess
import sys

import pytest
import torch

from sublim.core.hardware import gpu, peak_gpu_memory
from sublim.core.provenance import code_version, device, package_versions

ASK = "from sublim.core.hardware import gpu; print(gpu())"


def asked(**environment: str) -> str:
    command = [sys.executable, "-c", ASK]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | environment)
    return done.stdout.strip()


def test_hidden_devices_are_no_devices() -> None:
    assert asked(CUDA_VISIBLE_DEVICES="") == "None"
    assert asked(CUDA_VISIBLE_DEVICES="-1") == "None"


def test_what_the_driver_says_is_what_torch_says() -> None:
    card = gpu()
    assert (card is not None) == torch.cuda.is_available()
    if card is not None:
        properties = torch.cuda.get_device_properties(0)
        assert card == (properties.name, properties.total_memory, (properties.major, properties.minor))


@pytest.mark.gpu
def test_gpu_is_named_and_has_memory() -> None:
    card = gpu()
    assert card is not None
    assert card.name
    assert card.memory > 2**30
    assert device() == card.name


def test_provenance_names_the_device_and_the_pinned_packages() -> None:
    assert device()
    assert {"sublim", "torch", "prefect"} <= package_versions().keys()


def test_code_version_is_a_commit_where_there_is_a_checkout() -> None:
    commit, dirty = code_version()
    assert (commit is None) == (dirty is None)
    assert commit is None or len(commit) == 40


def test_without_a_gpu_no_peak_is_told() -> None:
    if gpu() is not None:
        pytest.skip("has a GPU")
    with peak_gpu_memory() as peak:
        torch.zeros(10)
    assert peak == {}


@pytest.mark.gpu
def test_the_peak_is_that_of_the_time_meant() -> None:
    torch.empty(2**30, dtype=torch.uint8, device="cuda")
    torch.cuda.empty_cache()
    held = torch.cuda.memory_reserved()  # by tests before this one
    with peak_gpu_memory() as peak:
        torch.empty(2**28, dtype=torch.uint8, device="cuda")
    assert 2**28 <= peak["peak_gpu_bytes"] - held < 2**29
