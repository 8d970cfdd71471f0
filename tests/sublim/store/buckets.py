"""An S3 server on this machine with Neuronpedia's layout, and a network in front of it that breaks off."""

import gzip
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import boto3

from sublim.features.labels.config import LabelsConfig

BUCKET = "neuronpedia-datasets"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class S3:
    """Moto's server in a process of its own, and a client that may write to it."""

    def __init__(self, port: int) -> None:
        self.port, self.url = port, f"http://127.0.0.1:{port}"
        self.client: Any = boto3.client(  # pyright: ignore[reportUnknownMemberType]
            "s3",
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id="writer",
            aws_secret_access_key="writer",
        )

    def put(self, files: Mapping[str, bytes]) -> None:
        def one(item: tuple[str, bytes]) -> None:
            # Without this right, moto refuses who has no credentials, as Amazon does.
            self.client.put_object(Bucket=BUCKET, Key=item[0], Body=item[1], ACL="public-read")

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(one, files.items()))

    def config(self, source: str, **more: Any) -> LabelsConfig:
        given = {"model": "gemma-2-9b-it", "source": source, "endpoint": self.url, "timeout": 10.0, **more}
        return LabelsConfig.model_validate(given)

    def explain(self, source: str, files: Mapping[str, Sequence[Mapping[str, Any]]]) -> LabelsConfig:
        """Puts explanations where the bucket has them."""
        config = self.config(source)
        self.put({f"{config.prefix}{name}": packed(rows) for name, rows in files.items()})
        return config


def packed(rows: Sequence[Mapping[str, Any]]) -> bytes:
    return gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode(), mtime=0)


@contextmanager
def s3_server(log: Path) -> Generator[S3]:
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with log.open("wb") as file, subprocess.Popen(command, stdout=file, stderr=file) as process:
        try:
            deadline = time.monotonic() + 60
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                    break
                except OSError as error:
                    if process.poll() is not None or time.monotonic() > deadline:
                        raise AssertionError(log.read_text(encoding="utf-8")) from error
                    time.sleep(0.1)
            server = S3(port)
            server.client.create_bucket(Bucket=BUCKET)
            yield server
        finally:
            process.terminate()


@contextmanager
def breaking(port: int, after: int | None, *, deaf: bool = False) -> Generator[str]:
    """The address of a proxy that ends every connection after so many bytes of the server's.

    `deaf`: it loses the header that asks for a part of a file, and so passes the whole.
    """
    listener = socket.create_server(("127.0.0.1", 0))

    def pump(source: socket.socket, target: socket.socket, left: int | None) -> None:
        with suppress(OSError), source, target:
            while (left is None or left > 0) and (data := source.recv(min(4096, left or 4096))):
                target.sendall(data.replace(b"\nRange:", b"\nLost:") if deaf else data)
                left = left and left - len(data)
            for end in (source, target):
                end.shutdown(socket.SHUT_RDWR)

    def accept() -> None:
        with suppress(OSError):  # closed
            while True:
                client, _ = listener.accept()
                server = socket.create_connection(("127.0.0.1", port))
                threading.Thread(target=pump, args=(client, server, None), daemon=True).start()
                threading.Thread(target=pump, args=(server, client, after), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.close()
