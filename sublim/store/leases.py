"""Leases: who may build a key now, among all machines that share a bucket. A lease ends with its holder."""

import json
import logging
import os
import socket
import threading
from collections.abc import Generator
from contextlib import contextmanager
from secrets import token_hex

from sublim.core.errors import StoreUnreachable
from sublim.store.s3 import Bucket

ROUNDING = 1.0  # servers write times in whole seconds
log = logging.getLogger("sublim.lease")


def lease_seconds() -> float:
    """How long a lease outlives its holder: SUBLIM_LEASE_SECONDS, by default a minute."""
    return float(os.environ.get("SUBLIM_LEASE_SECONDS", "60"))


class Lease:
    """One object in the bucket, written only where there is none or over an expired one, and rewritten while held.

    How old it is says the server's clock. A holder that loses its lease (it slept, or the network did) goes on: what it
    commits is compared with what the other committed, and the first one counts.
    """

    def __init__(self, bucket: Bucket, name: str) -> None:
        self.bucket, self.name = bucket, name
        self.seconds = lease_seconds()
        self.holder = "another run"
        self._id, self._beat, self._etag = token_hex(8), 0, ""

    def take(self) -> bool:
        """Takes the lease if nobody holds it; otherwise `holder` says who does."""
        etag = self.bucket.put(self.name, self._note())
        if etag is None:
            found = self.bucket.get(self.name)
            if found is None:  # given back this moment
                return False
            note = json.loads(found.body)
            self.holder = f"process {note['pid']} on {note['host']}"
            if note["id"] == self._id:  # our own, whose answer was lost on the way
                etag = found.etag
            elif found.age > note["seconds"] + ROUNDING:
                log.warning("%s left its lease of %s behind: taking it over", self.holder, self.name)
                etag = self.bucket.put(self.name, self._note(), over=found.etag)
        self._etag = etag or ""
        return etag is not None

    @contextmanager
    def renewed(self) -> Generator[None]:
        """Keeps a lease that was taken, and gives it back in the end."""
        stop = threading.Event()
        thread = threading.Thread(target=self._keep, args=(stop,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            self._give_back()

    def _keep(self, stop: threading.Event) -> None:
        while not stop.wait(self.seconds / 3):
            try:
                kept = self._renew()
            except StoreUnreachable as error:  # the lease may expire; what is being made is not lost by that
                log.warning("%s; the lease of %s was not renewed", error, self.name)
                continue
            if not kept:
                log.warning("the lease of %s was lost: another run may be building the same", self.name)
                return

    def _renew(self) -> bool:
        self._beat += 1
        etag = self.bucket.put(self.name, self._note(), over=self._etag)
        if etag is None:
            found = self.bucket.get(self.name)
            etag = found.etag if found is not None and json.loads(found.body)["id"] == self._id else ""
        self._etag = etag
        return bool(etag)

    def _give_back(self) -> None:
        try:
            if self._etag and self._renew():  # just renewed, nobody takes it over before it is gone
                self.bucket.delete(self.name)
        except StoreUnreachable as error:
            log.warning("%s; the lease of %s ends by itself", error, self.name)

    def _note(self) -> bytes:
        fields = {"id": self._id, "host": socket.gethostname(), "pid": os.getpid(), "seconds": self.seconds}
        return json.dumps({**fields, "beat": self._beat}).encode()
