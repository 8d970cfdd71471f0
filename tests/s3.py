"""A real S3 server (moto's, a process of its own) and a proxy in front of it that can refuse, cut, delay and count."""

import base64
import http.client
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# Ends the server with whoever started it, even by SIGKILL: its end of this pipe closes.
SERVE = """
import os, sys, threading
def follow():
    sys.stdin.read()
    os._exit(0)
threading.Thread(target=follow, daemon=True).start()
from moto.server import main
main()
"""
Rule = Callable[[str, str], "int | float | str | None"]


@contextmanager
def running_s3() -> Iterator[int]:
    """An S3 server that answers; gives its port of 127.0.0.1. What it holds is gone with it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-c", SERVE, "-H", "127.0.0.1", "-p", str(port)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    server = subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/moto-api/data.json", timeout=2).close()
                break
            except OSError:
                assert server.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.1)
        yield port
    finally:
        server.kill()
        server.wait()


class S3Proxy(ThreadingHTTPServer):
    """Passes requests on, as `rule(method, path)` says of each.

    None passes it on, a whole number answers with that status, a float waits so many seconds first, "cut" ends the
    connection in the middle of the answer, "lost" does the work and never answers, "flip" changes a bit of what is
    sent (and refuses it where a checksum tells), and "unconditional" drops If-Match and If-None-Match, as servers do
    that know neither.
    """

    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Passing)
        self.target = port
        self.rule: Rule = lambda method, path: None
        self.seen: list[tuple[str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # the other side hung up


@contextmanager
def proxy_to_s3(port: int) -> Iterator[S3Proxy]:
    with S3Proxy(port) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            proxy.shutdown()
            thread.join()


class _Passing(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: S3Proxy

    def _pass(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        verdict = self.server.rule(self.command, self.path)
        self.server.seen.append((self.command, self.path))
        if isinstance(verdict, int):
            self._answer(verdict, [], b"" if self.command == "HEAD" else _refusal(verdict))
            return
        if isinstance(verdict, float):
            time.sleep(verdict)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in ("host", "expect")}
        if verdict == "flip":
            body = bytes([body[0] ^ 1]) + body[1:]
            said = self.headers.get("x-amz-checksum-sha256")
            if said is not None and said != base64.b64encode(sha256(body).digest()).decode():  # moto does not look
                self._answer(400, [], _refusal(400))
                return
        if verdict == "unconditional":
            headers = {name: value for name, value in headers.items() if not name.lower().startswith("if-")}
        upstream = http.client.HTTPConnection("127.0.0.1", self.server.target, timeout=60)
        upstream.request(self.command, self.path, body, headers)
        answer = upstream.getresponse()
        content = answer.read()
        upstream.close()
        if verdict == "lost":
            self.close_connection = True
            return
        self._answer(answer.status, answer.getheaders(), content, cut=verdict == "cut")

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes, *, cut: bool = False) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("connection", "content-length", "transfer-encoding"):
                self.send_header(name, value)
        length = next((value for name, value in headers if name.lower() == "content-length"), str(len(body)))
        self.send_header("Content-Length", length if self.command == "HEAD" else str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self.close_connection = True

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _pass

    def log_message(self, format: str, *args: object) -> None:
        pass


def _refusal(status: int) -> bytes:
    code = {400: "BadDigest", 403: "AccessDenied", 500: "InternalError", 503: "SlowDown"}.get(status, "Refused")
    return f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>no</Message></Error>".encode()
