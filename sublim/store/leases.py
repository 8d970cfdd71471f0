"""Leases: the right to build a key, among all machines that share a bucket. A lease expires after its holder dies."""

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

ROUNDING = 1.0  # servers report times in whole seconds
log = logging.getLogger("sublim.lease")


class Lease:
    """An object in the bucket that is written only where there is none or over an expired one, and renewed while held.

    Its age is measured by the server's clock. A holder that loses its lease, as after a suspension, goes on: its result
    is compared with what the other machine committed, and the first one is valid.
    """

    def __init__(self, bucket: Bucket, name: str) -> None:
        self.bucket, self.name = bucket, name
        self.seconds = float(os.environ.get("SUBLIM_LEASE_SECONDS", "60"))
        """How long the lease is valid after its last renewal."""
        self.holder = "another run"
        self._id, self._beat, self._etag = token_hex(8), 0, ""

    def take(self) -> bool:
        """Takes the lease if nobody holds it. Otherwise returns False and sets `holder` to the process that does."""
        etag = self.bucket.put(self.name, self._note())
        if etag is None:
            found = self.bucket.get(self.name)
            if found is None:  # it has just been released
                return False
            note = json.loads(found.body)
            self.holder = f"process {note['pid']} on {note['host']}"
            if note["id"] == self._id:  # our own: the server's answer was lost
                etag = found.etag
            elif found.age > note["seconds"] + ROUNDING:
                log.warning("%s left an expired lease of %s: taking it over", self.holder, self.name)
                etag = self.bucket.put(self.name, self._note(), over=found.etag)
        self._etag = etag or ""
        return etag is not None

    @contextmanager
    def renewed(self) -> Generator[None]:
        """Renews a lease that was taken until the block ends, then releases it."""
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
            except StoreUnreachable as error:  # the lease may expire, which loses no result
                log.warning("%s; the lease of %s was not renewed", error, self.name)
                continue
            if not kept:
                log.warning("the lease of %s was lost: another run may be building the same artifact", self.name)
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
            if self._etag and self._renew():  # renewed, so that nobody takes it over before it is deleted
                self.bucket.delete(self.name)
        except StoreUnreachable as error:
            log.warning("%s; the lease of %s will expire", error, self.name)

    def _note(self) -> bytes:
        fields = {"id": self._id, "host": socket.gethostname(), "pid": os.getpid(), "seconds": self.seconds}
        return json.dumps({**fields, "beat": self._beat}).encode()
