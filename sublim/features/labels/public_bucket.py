"""Reading public S3 buckets without credentials: listing the keys below a prefix, and downloading files in parallel."""

import logging
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from hashlib import sha256
from pathlib import Path, PurePosixPath
from shutil import copyfileobj
from typing import Any, NamedTuple

import boto3
from botocore import UNSIGNED
from botocore.client import Config as ClientConfig
from botocore.exceptions import ClientError, HTTPClientError, IncompleteReadError

from sublim.core.errors import UserError
from sublim.core.kill_points import kill_point
from sublim.core.progress import progress
from sublim.features.labels.config import LabelsConfig
from sublim.files.syncing import sync
from sublim.store.s3_hints import NO_ANSWER, advice, code_of, explain_error

CHUNK = 1 << 20
"""Bytes read and written at a time."""
logger = logging.getLogger(__name__)


class BucketFile(NamedTuple):
    """A file in a bucket, as the listing describes it; `size` is in bytes."""

    key: str
    size: int
    etag: str

    @property
    def kept_as(self) -> str:
        """Its file name on this machine, a hash: keys come from strangers and are never used as paths."""
        return sha256(f"{self.key}\n{self.etag}".encode()).hexdigest()[:32]


class PublicBucket:
    """A bucket on a server. All methods raise UserError if the network or the server fails."""

    def __init__(self, config: LabelsConfig) -> None:
        self.config = config
        self.address = config.endpoint or f"Amazon's S3 ({config.region})"
        self.client: Any = boto3.client(  # pyright: ignore[reportUnknownMemberType]
            "s3",
            endpoint_url=config.endpoint,
            region_name=config.region,
            config=ClientConfig(
                signature_version=UNSIGNED,
                max_pool_connections=config.workers,
                connect_timeout=config.timeout,
                read_timeout=config.timeout,
                retries={"total_max_attempts": 3, "mode": "standard"},
                s3={"addressing_style": "path"} if config.endpoint else {},
            ),
        )

    def entries(self, prefix: str) -> list[BucketFile]:
        """All files below `prefix`, sorted by key."""
        found = [
            BucketFile(item["Key"], item["Size"], item["ETag"])
            for page in self._pages(Prefix=prefix)
            for item in page.get("Contents", [])
        ]
        return sorted(found)

    def folders(self, prefix: str) -> list[str]:
        """Sorted names of the folders directly below `prefix`."""
        pages = self._pages(Prefix=prefix, Delimiter="/")
        return sorted(
            item["Prefix"].removeprefix(prefix).rstrip("/") for page in pages for item in page.get("CommonPrefixes", [])
        )

    def _pages(self, **asked: str) -> Iterator[dict[str, Any]]:
        with self._told(f"listing {asked['Prefix']}"):
            yield from self.client.get_paginator("list_objects_v2").paginate(Bucket=self.config.bucket, **asked)

    def download(self, entries: Sequence[BucketFile], folder: Path) -> list[Path]:
        """Downloads files to `folder` and returns their paths in the same order; existing files are not fetched again.

        A download that breaks off is continued, up to `attempts` times of the config and also by a later call.
        """
        missing = [entry for entry in entries if not (folder / entry.kept_as).exists()]
        with progress("downloading", len(entries)) as advance, ThreadPoolExecutor(self.config.workers) as pool:
            advance(len(entries) - len(missing))
            for _ in pool.map(lambda entry: self._fetch(entry, folder / entry.kept_as), missing):
                advance(1)
                kill_point("download:file")
        return [folder / entry.kept_as for entry in entries]

    def _fetch(self, entry: BucketFile, path: Path) -> None:
        draft, attempts = path.with_suffix(".part"), self.config.attempts
        for attempt in range(1, attempts + 1):
            try:
                with self._told(f"reading {entry.key}"):
                    self._append(entry, draft)
            except BrokenOff as broken:
                logger.info("%s broke off at byte %d of %d", entry.key, draft.stat().st_size, entry.size)
                if attempt == attempts:
                    raise UserError(
                        f"the download of {entry.key} from {self.address} broke off {attempts} times, last at byte "
                        f"{draft.stat().st_size} of {entry.size} ({broken}): run again, it goes on from there"
                    ) from broken
            else:
                break
        sync(draft)
        draft.replace(path)

    def _append(self, entry: BucketFile, draft: Path) -> None:
        """Appends to `draft` what is missing of the file. Raises BrokenOff if the connection ends early."""
        with draft.open("ab") as file:
            if file.tell() > entry.size:
                file.seek(0)
                file.truncate()
            start = file.tell()
            if start < entry.size:
                # If-Match: all parts of a resumed file must be from the same version.
                asked = {"Bucket": self.config.bucket, "Key": entry.key, "IfMatch": entry.etag}
                ranged = {"Range": f"bytes={start}-"} if start else {}
                with closing(self.client.get_object(**asked, **ranged)["Body"]) as body:
                    try:
                        copyfileobj(body, file, CHUNK)
                    except (IncompleteReadError, HTTPClientError) as error:
                        raise BrokenOff(type(error).__name__) from error
            if file.tell() != entry.size:
                raise BrokenOff("fewer bytes than listed" if file.tell() < entry.size else "more bytes than listed")

    @contextmanager
    def _told(self, doing: str) -> Generator[None]:
        try:
            yield
        except ClientError as error:
            code = code_of(error)
            hint = _advice(code) or advice(error, endpoint="`endpoint`", region="`region`")
            hint = hint or "check `bucket` and `endpoint`"
            raise UserError(f"{self.address} refuses {doing} in {self.config.bucket} ({code}): {hint}") from error
        except NO_ANSWER as error:
            hint = explain_error(error, endpoint="`endpoint`", region="`region`").hint
            raise UserError(
                f"{self.address} does not answer while {doing} ({type(error).__name__}): {hint}; "
                "the files so far are kept"
            ) from error


class BrokenOff(Exception):
    """A download ended before the file was complete."""


def _advice(code: str) -> str | None:
    """What to do about a code that means something else for a public bucket than in general."""
    match code:
        case "NoSuchBucket":
            return "there is no such bucket, check `bucket` and `endpoint`"
        case "PreconditionFailed" | "412" | "NoSuchKey":
            return "the file changed since it was listed, run again"
        case "AccessDenied" | "403":
            return "the bucket is not public: check `bucket` and `endpoint`"
        case _:
            return None


def keys_outside(entries: Sequence[BucketFile], prefix: str) -> list[str]:
    """The keys that would be outside the folder `prefix` if they were used as paths."""
    return [entry.key for entry in entries if entry.key != prefix and not _inside(entry.key.removeprefix(prefix))]


def _inside(name: str) -> bool:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    return "\0" not in name and ".." not in parts and not parts[0].startswith("/") and ":" not in parts[0]
