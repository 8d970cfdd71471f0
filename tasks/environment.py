"""The environment that everything here runs in: what `.env` adds, what Prefect is told, and no proxy for loopback."""

import os
from contextlib import suppress
from io import StringIO
from ipaddress import ip_address, ip_network
from pathlib import Path

from dotenv import dotenv_values
from dotenv.parser import parse_stream

from sublim.core.errors import UserError

DEFAULTS = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",  # DO_NOT_TRACK does not stop the server's own heartbeat
    "PREFECT_LOGGING_EXTRA_LOGGERS": "sublim",
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "WANDB_MODE": "disabled",
    "TOKENIZERS_PARALLELISM": "false",
    # A spinning OpenMP worker waits a whole scheduler tick for a core that the Prefect server or a worker is using:
    # small matmuls were seen 30 times slower. One that never spins pays for each wake-up: training took 15 % longer.
    "GOMP_SPINCOUNT": "20000",
    "TQDM_DISABLE": "1",  # stages report their own progress
}
PROXIES = {"http_proxy", "https_proxy", "all_proxy"}
LOOPBACK = ("localhost", "127.0.0.1", "::1")
from_file: set[str] = set()
"""Names of the variables that came from `.env`."""


def settle() -> None:
    """Completes this process's environment, which its child processes inherit.

    Raises UserError for a `.env` that cannot be read.
    """
    for name, value in read_dotenv(Path(".env")).items():
        if name not in os.environ:
            os.environb[name.encode()] = value.encode()  # the locale's encoding may lack letters of it
            from_file.add(name)
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    _make_exceptions_readable()
    spare_from_proxy(*LOOPBACK)


def read_dotenv(path: Path) -> dict[str, str]:
    """The variables that a `.env` file sets; a line without a value sets none, and without a file there are none."""
    try:
        if not path.is_file():  # some keep a virtual environment in a folder of this name
            return {}
    except PermissionError:  # in a folder that this user may not enter
        return {}
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path.absolute()} is not UTF-8 (byte {error.start}): save it as UTF-8") from error
    except OSError as error:
        raise UserError(f"{path.absolute()} cannot be read: {error.strerror}") from error
    for line in parse_stream(StringIO(text)):
        if line.error or "\0" in line.original.string:
            raise UserError(
                f"line {line.original.line} of {path.absolute()} is not NAME=value: correct it, or put # before it"
            )
    return {name: value for name, value in dotenv_values(stream=StringIO(text)).items() if value}


def spare_from_proxy(*hosts: str) -> None:
    """Has no HTTP proxy asked for these hosts, by this process and its children; the user's other settings stay."""
    # Without a proxy in the environment nothing is set: macOS would take it for the whole of its proxy settings.
    if not PROXIES & {name.lower() for name in os.environ}:
        return
    spared = _exceptions()
    if "*" not in spared:
        spared += [host for host in hosts if host not in spared]
    _except(spared)


def in_spared_range(host: str) -> bool:
    """Whether `host` is in a range of addresses that NO_PROXY names, as in 10.0.0.0/8. httpx knows no ranges."""
    for each in _exceptions():
        with suppress(ValueError):  # one of them is a name
            if ip_address(host) in ip_network(each, strict=False):
                return True
    return False


def _exceptions() -> list[str]:
    own = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    return [host.strip() for host in own.split(",") if host.strip()]


def _except(hosts: list[str]) -> None:
    # Both spellings: programs differ in which one they read.
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(hosts)


def _make_exceptions_readable() -> None:
    """Writes IPv6 addresses in NO_PROXY without brackets, and a range of them as its first address.

    httpx, which Prefect and Hugging Face use, makes no client at all while the other forms are there.
    """
    found = _exceptions()
    readable = [_readable(host) for host in found]
    if readable != found:
        _except(readable)


def _readable(host: str) -> str:
    bare = host.strip("[]").partition("/")[0]
    try:
        return bare if ip_address(bare).version == 6 else host
    except ValueError:  # a name
        return host
