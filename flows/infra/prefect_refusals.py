"""Why a Prefect server cannot be used, in one line with the next step."""

import os
import socket
import ssl
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx

from sublim.core.errors import UserError, chain
from tasks.environment import from_file

if TYPE_CHECKING:
    from prefect.settings import Settings


class NoAnswer(UserError):
    """There is no usable Prefect server at an address."""


def origin(name: str = "PREFECT_API_URL") -> str:
    """Where one of Prefect's settings comes from, in words."""
    if name in from_file:
        return ".env in this folder"
    return "the environment" if name in os.environ else "prefect.toml, pyproject.toml or the active Prefect profile"


def proxy_of(url: str) -> str | None:
    """Host and port of the proxy for an address, without its password; None without a proxy."""
    parts, found = urlsplit(url), getproxies()
    proxy = found.get(parts.scheme) or found.get("all")
    if not proxy or proxy_bypass(parts.hostname or ""):
        return None
    return urlsplit(proxy if "://" in proxy else f"http://{proxy}").netloc.rpartition("@")[2]


def explained(error: Exception, url: str, settings: "Settings") -> NoAnswer:
    """The exception that says what an error of Prefect's client means, and what to do about it."""
    proxy = proxy_of(url)
    if isinstance(error, httpx.HTTPStatusError):
        why = f"the Prefect server at {url} cannot be used: {_status(error.response, settings)}"
    elif isinstance(error, httpx.LocalProtocolError):  # its own message contains the header, which may be a secret
        why = (
            f"no request can be sent to {url}: PREFECT_API_KEY or a header in PREFECT_CLIENT_CUSTOM_HEADERS has "
            "a line break in it or a space at an end; remove it"
        )
    else:
        why = f"no Prefect server answers at {url}: {_unreached(error, url, proxy)}"
    if proxy:
        why += (
            f"; the request went through the proxy {proxy}: if it needs none, add {urlsplit(url).hostname} to NO_PROXY"
        )
    return NoAnswer(why)


def _status(answer: httpx.Response, settings: "Settings") -> str:
    match answer.status_code:
        case 401 if settings.api.auth_string:
            return "it refuses the user:password in PREFECT_API_AUTH_STRING"
        case 401 if settings.api.key:
            return "it refuses the key in PREFECT_API_KEY"
        case 401:
            return (
                "it wants a password: set PREFECT_API_AUTH_STRING to its user:password, or PREFECT_API_KEY or "
                "PREFECT_CLIENT_CUSTOM_HEADERS if a gateway in front of it needs those"
            )
        case 403:
            return "it forbids access (403): check PREFECT_API_AUTH_STRING, PREFECT_API_KEY and the address"
        case 404:
            return "there is no Prefect API at this address (404): it usually ends in /api"
        case 407:
            return "the proxy wants a user and password (407)"
        case 400 if answer.url.scheme == "http":
            return "it refuses the request (400): if the server uses TLS, write https://"
        case code:
            return f"it answers {code} {answer.reason_phrase}".rstrip()


def _unreached(error: Exception, url: str, proxy: str | None) -> str:
    host = urlsplit(f"//{proxy}" if proxy else url).hostname
    for cause in chain(error):
        match cause:
            case ssl.SSLCertVerificationError():
                return (
                    f"its certificate is not trusted ({cause.verify_message}): set PREFECT_API_SSL_CERT_FILE to the "
                    "certificate of your lab's authority"
                )
            case ssl.SSLError():
                return f"the TLS handshake failed ({cause.reason}): if the server uses plain HTTP, write http://"
            case socket.gaierror():
                return f"the host name {host} is not known here: check the name and the network"
            case ConnectionRefusedError():
                return "nothing listens there: start it" if proxy is None else "nothing listens at the proxy's address"
            case _:
                pass
    match error:
        case httpx.ProxyError():
            return f"the proxy refuses ({error})"
        case httpx.ConnectTimeout():
            return "the connection timed out: check the address, the firewall and the VPN"
        case httpx.TimeoutException():
            return "it is connected but does not answer in time: it is busy, or hangs"
        case httpx.RemoteProtocolError() | httpx.ReadError():
            return f"the answer is not HTTP ({error}): if the server uses TLS, write https://"
        case _:
            return str(error) or type(error).__name__
