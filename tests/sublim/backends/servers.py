"""Servers on this machine for the openai sampler's tests: one that misbehaves by script, and vLLM's own."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import httpx


class Reply(NamedTuple):
    """What the scripted server answers with."""

    status: int
    body: bytes
    headers: dict[str, str] = {}  # noqa: RUF012


class Seen(NamedTuple):
    """A request that arrived."""

    at: float
    path: str
    body: dict[str, Any]
    headers: dict[str, str]


class Scripted(ThreadingHTTPServer):
    """Answers each request as `script(number, request)` says, and notes them all."""

    daemon_threads = True

    def __init__(self, script: Callable[[int, Seen], Reply], delay: float) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script, self.delay, self.lock = script, delay, threading.Lock()
        self.seen, self.busy, self.busiest = list[Seen](), 0, 0
        self.url = f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Scripted

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            number = len(self.server.seen)
            request = Seen(time.monotonic(), self.path, body, dict(self.headers))
            self.server.seen.append(request)
            self.server.busy += 1
            self.server.busiest = max(self.server.busiest, self.server.busy)
        time.sleep(self.server.delay)
        reply = self.server.script(number, request)
        with self.server.lock:
            self.server.busy -= 1
        self.send_response(reply.status)
        for name, value in {**reply.headers, "Content-Length": str(len(reply.body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(reply.body)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


def said(text: str, **more: Any) -> Reply:
    """A chat completion."""
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return Reply(200, json.dumps({"choices": [choice], **more}).encode())


def echo(number: int, request: Seen) -> Reply:
    """Says what it was asked, and with which seed."""
    return said(f"{request.body['messages'][-1]['content']} {request.body['seed']}")


@contextmanager
def scripted(script: Callable[[int, Seen], Reply] = echo, delay: float = 0.0) -> Generator[Scripted]:
    server = Scripted(script, delay)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


# Ends the server and its engine's process when this process's stdin closes: by the test, or by the test's death.
SERVE = """
import os, runpy, signal, sys, threading
def follow():
    sys.stdin.read()
    os.killpg(0, signal.SIGKILL)
if __name__ == "__main__":  # the engine's process imports this file again
    threading.Thread(target=follow, daemon=True).start()
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__", alter_sys=True)
"""


class VllmServer:
    """vLLM's OpenAI server on a model folder; starts at once, and is waited for when its address is asked."""

    def __init__(self, model: Path, log: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url, self.log = f"http://127.0.0.1:{port}/v1", log
        options = [
            "--model",
            str(model),
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--dtype",
            "float32",
            "--enforce-eager",
            "--max-model-len",
            "512",
            "--max-num-seqs",
            "64",
        ]
        options += ["--kv-cache-memory-bytes", str(2**29), "--served-model-name", "smollm2"]
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-c", SERVE, *options],
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
                | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"},
            )

    def ready(self) -> str:
        """The address, once the server answers."""
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                if httpx.get(f"{self.url}/models", timeout=2).status_code == 200:
                    return self.url
            except httpx.TransportError:
                time.sleep(0.5)
        raise AssertionError(f"vLLM's server did not start: {self.log.read_text()[-3000:]}")

    def stop(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
