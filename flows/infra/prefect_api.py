"""The Prefect API that runs use: the address in Prefect's own settings, and whether a Prefect server answers there."""

import os
import re
import ssl
import sys
from collections.abc import Generator
from contextlib import contextmanager
from importlib import import_module
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httpx

from flows.infra.prefect_refusals import NoAnswer, explained, origin
from sublim.core.errors import UserError
from tasks.environment import LOOPBACK, in_spared_range, spare_from_proxy

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.settings import Settings

CONNECT_SECONDS = 3.0  # for each of the four attempts of Prefect's client
VERSION = re.compile(r"(\d+)\.\d+\S*")


def settings() -> "Settings":
    """Prefect's current settings, from the environment, `.env`, prefect.toml, pyproject.toml and the active profile.

    Raises UserError when Prefect cannot read them. The first import of Prefect takes two seconds.
    """
    # A value of the wrong type in a profile raises whatever error Prefect's code runs into.
    try:
        import_module("prefect.context")  # this also reads the profiles
        from prefect.settings import Settings

        return Settings()
    except RuntimeError as error:  # PREFECT_HOME, or its default, starts with `~`
        raise UserError("this user has no home folder: set PREFECT_HOME and SUBLIM_HOME to folders, or HOME") from error
    except (ValueError, OSError, TypeError, AttributeError) as error:
        raise UserError(_unreadable(error)) from error


def _unreadable(error: Exception) -> str:
    from pydantic import ValidationError

    if isinstance(error, ValidationError):  # the value is left out: it may be a secret
        first = error.errors()[0]
        what = f"{error.title} {'.'.join(map(str, first['loc']))}: {first['msg']}"
    else:
        what = str(error).partition("\n")[0]
    home = Path(os.environ.get("PREFECT_HOME") or "~/.prefect").expanduser()
    profiles = os.environ.get("PREFECT_PROFILES_PATH") or home / "profiles.toml"
    return (
        f"Prefect's settings cannot be read ({what}): correct PREFECT_... in the environment or .env, prefect.toml and "
        f"pyproject.toml in this folder, or the profiles in {profiles}"
    )


def chosen_url() -> str | None:
    """The API address in the user's settings, or None.

    Raises UserError for a malformed address, and for one that holds a password, because addresses are logged.
    """
    url = settings().api.url
    if not url:
        return None
    parts = urlsplit(url)
    if parts.username is not None:
        raise UserError("the Prefect server's address holds a user or password: put them into PREFECT_API_AUTH_STRING")
    if parts.scheme not in ("http", "https") or not parts.hostname or not _is_address(url):
        raise UserError(
            f"PREFECT_API_URL ({origin()}) is {url!r}: write the whole address, as in http://127.0.0.1:4200/api"
        )
    return url


def _is_address(url: str) -> bool:
    """Whether every client accepts the address: no spaces, a port below 65536, a valid host name."""
    try:
        return url == "".join(url.split()) and bool(httpx.URL(url).host.encode("idna")) and urlsplit(url).port != 0
    except (httpx.InvalidURL, ValueError):
        return False


def is_loopback(host: str | None) -> bool:
    """Whether `host` means this machine: a loopback address, or 0.0.0.0, which is often used for it."""
    if host in LOOPBACK:
        return True
    try:
        address = ip_address(host or "")
    except ValueError:  # a name
        return False
    return address.is_loopback or address.is_unspecified


def check(url: str, seconds: float = 30.0) -> str:
    """The version of the Prefect server at `url`.

    Raises UserError, with the cause and what to do, when there is no usable server. `seconds` is how long a server may
    take to answer once it is connected; a busy one takes half a minute.
    """
    from prefect import __version__ as own
    from prefect.client.base import ServerType

    with asking(url, seconds) as client:
        try:
            if client.server_type == ServerType.CLOUD:  # always compatible, and reports no version
                client.request("GET", "/health")
                return own
            answer = client.request("GET", "/admin/version")
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise explained(error, url, settings()) from error
    found = _json(answer)
    if not isinstance(found, str) or not (version := VERSION.fullmatch(found)):
        kind = answer.headers.get("Content-Type", "no content type").partition(";")[0]
        raise NoAnswer(
            f"what answers at {url} is not Prefect's API (it sent {kind}): that address usually ends in /api"
        )
    if version[1] != own.partition(".")[0]:
        raise NoAnswer(
            f"the server at {url} is Prefect {found} and this is Prefect {own}: install one with the same major version"
        )
    return found


def check_chosen(url: str) -> str:
    """Like `check`, for the address in the user's settings; the error says where that address is set."""
    try:
        return check(url)
    except NoAnswer as error:
        raise NoAnswer(f"{error}. Or unset PREFECT_API_URL, which comes from {origin()}") from error


def responds(url: str, seconds: float = 2.0) -> bool:
    """Whether a Prefect API at `url` reports that it is healthy, which needs no password."""
    with asking(url, seconds) as client:
        try:
            return _json(client.request("GET", "/health")) is True
        except (httpx.HTTPError, OSError):
            return False


def _json(answer: httpx.Response) -> object:
    try:
        return answer.json()
    except ValueError:
        return None


@contextmanager
def asking(url: str, seconds: float) -> "Generator[SyncPrefectClient]":
    """Prefect's own client without retries, with the proxies, certificates, headers and passwords of its settings.

    From here on, this process and its child processes connect to a loopback address without a proxy.
    Raises UserError when no client can be made from the settings.
    """
    found, host = settings(), urlsplit(url).hostname
    if host and (is_loopback(host) or in_spared_range(host)):
        spare_from_proxy(host)
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.context import SettingsContext, get_settings_context
    from prefect.settings import PREFECT_CLIENT_MAX_RETRIES

    once = found.copy_with_update(updates={PREFECT_CLIENT_MAX_RETRIES: 0})
    with SettingsContext(profile=get_settings_context().profile, settings=once):
        key, password = found.api.key, found.api.auth_string
        try:
            client = SyncPrefectClient(
                url,
                auth_string=password.get_secret_value() if password else None,
                api_key=key.get_secret_value() if key else None,
                httpx_settings={"timeout": httpx.Timeout(seconds, connect=min(seconds, CONNECT_SECONDS))},
            )
        except (ssl.SSLError, OSError) as error:
            raise UserError(
                f"PREFECT_API_SSL_CERT_FILE names {found.api.ssl_cert_file}, which holds no readable "
                f"certificate ({error})"
            ) from error
        except UnicodeError as error:
            raise UserError(
                "a header can only contain ASCII characters: correct PREFECT_API_KEY, PREFECT_API_AUTH_STRING or "
                "PREFECT_CLIENT_CUSTOM_HEADERS"
            ) from error
        except (ImportError, ValueError, httpx.InvalidURL) as error:
            raise UserError(
                f"Prefect's client does not accept the proxy settings in the environment ({error}): correct "
                "HTTP_PROXY, HTTPS_PROXY, ALL_PROXY or NO_PROXY, or unset them"
            ) from error
        with client:
            yield client


def reread_environment() -> None:
    """Makes Prefect read the environment again, if it is imported already."""
    if "prefect.context" in sys.modules:
        sys.modules["prefect.context"].refresh_global_settings_context()
