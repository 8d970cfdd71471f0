"""A prefix in an S3 bucket: objects, conditional writes and verified transfers, with errors that say what to do."""

import base64
import os
from collections.abc import Collection, Generator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import boto3
from boto3.exceptions import S3UploadFailedError
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError
from urllib3.exceptions import HTTPError

from sublim.core.errors import StoreRefused, StoreUnreachable, UserError
from sublim.store.s3_hints import NO_ANSWER, PASSING, RIGHTS, advice, code_of, explain_error

PART = 16 * 2**20
"""Bytes that are sent or fetched in one request."""
SETTINGS = {"endpoint": "AWS_ENDPOINT_URL", "region": "AWS_DEFAULT_REGION"}
PERMANENT = (301, 400, 401, 403, 404, 405, 501)
_OVERTAKEN = ("PreconditionFailed", "ConditionalRequestConflict", "NoSuchKey")


class Stored(NamedTuple):
    """An object as it was read."""

    body: bytes
    etag: str
    age: float
    """Seconds since it was written, by the server's own clock."""


class Listed(NamedTuple):
    """An object as a listing names it."""

    name: str
    size: int
    age: float


class Bucket:
    """Objects below `s3://bucket/prefix`. The server and the credentials come from the usual AWS_* variables.

    Every method raises StoreUnreachable when the server does not answer, and StoreRefused when it refuses.
    """

    def __init__(self, address: str) -> None:
        self.bucket, _, prefix = address.removeprefix("s3://").partition("/")
        self.prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        if "@" in self.bucket or not self.bucket:
            raise UserError(
                "SUBLIM_STORE is s3://bucket/prefix without a key: use AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            )
        for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
            if urlsplit(os.environ.get(name, "")).username is not None:
                raise UserError(f"{name} holds a user or password: use AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
        self.address = f"s3://{self.bucket}/{self.prefix}".rstrip("/")
        settings = Config(
            retries={"mode": "standard", "total_max_attempts": _whole("AWS_MAX_ATTEMPTS", 4)},
            connect_timeout=5,
            read_timeout=_whole("SUBLIM_S3_SECONDS", 60),
            max_pool_connections=32,
            # Servers other than Amazon's often refuse the trailing checksums that boto3 adds to uploads by default.
            request_checksum_calculation=os.environ.get("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required"),
            response_checksum_validation=os.environ.get("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_required"),
        )
        with self._errors_told():
            session = boto3.Session()
            self.client: Any = session.client("s3", region_name=session.region_name or "us-east-1", config=settings)

    def get(self, name: str) -> Stored | None:
        """The object, or None when the server says that it does not exist."""
        with self._errors_told():
            answer = self._answer("get_object", name, ("NoSuchKey",))
            return answer and Stored(answer["Body"].read(), answer["ETag"], _age(answer, answer["LastModified"]))

    def read(self, name: str, start: int, stop: int, *, attempts: int = 3) -> bytes | None:
        """The bytes from `start` to `stop` of an object, or None when it does not exist."""
        absent, asked = ("NoSuchKey", "InvalidRange"), f"bytes={start}-{stop - 1}"
        with self._errors_told():
            try:
                answer = self._answer("get_object", name, absent, Range=asked)
                return answer and answer["Body"].read()
            except (HTTPError, BotoCoreError):  # an answer that broke off, which boto3 does not ask for again
                if attempts == 1:
                    raise
        return self.read(name, start, stop, attempts=attempts - 1)

    def put(self, name: str, body: bytes, *, over: str | None = None, anyway: bool = False) -> str | None:
        """Writes a small object: where there is none, or over the one with the etag `over`, or `anyway`.

        Returns the new etag, or None when the condition does not hold.
        """
        condition = {} if anyway else {"IfMatch": over} if over else {"IfNoneMatch": "*"}
        with self._errors_told():
            answer = self._answer("put_object", name, () if anyway else _OVERTAKEN, Body=body, **condition)
            return answer and answer["ETag"]

    def upload(self, path: Path, name: str, sha256: str) -> None:
        """Uploads a file, in parts when it is large. The server verifies the checksums of what arrives."""
        with self._errors_told():
            if path.stat().st_size <= PART:
                checksum = base64.b64encode(bytes.fromhex(sha256)).decode()
                with path.open("rb") as file:
                    self._answer("put_object", name, Body=file, ChecksumSHA256=checksum, Metadata={"sha256": sha256})
            else:
                extra = {"ChecksumAlgorithm": "SHA256", "Metadata": {"sha256": sha256}}
                parts = TransferConfig(multipart_threshold=PART, multipart_chunksize=PART, max_concurrency=4)
                self.client.upload_file(str(path), self.bucket, self.prefix + name, extra, Config=parts)

    def described(self, name: str) -> tuple[int, str] | None:
        """Size in bytes and SHA-256 of an uploaded file, or None when it does not exist."""
        with self._errors_told():
            answer = self._answer("head_object", name, ("404", "NoSuchKey"), ChecksumMode="ENABLED")
        if answer is None:
            return None
        size, known = answer["ContentLength"], answer.get("ChecksumSHA256", "")
        if known and size <= PART:  # the server computed it; for an upload in parts it would be a checksum of checksums
            return size, base64.b64decode(known).hex()
        return size, answer["Metadata"].get("sha256", "")

    def list(self, under: str = "") -> Iterator[Listed]:
        """All objects whose names start with `under`, in the order of the names."""
        for name, age, item in self._listed("list_objects_v2", "Contents", "LastModified", under):
            yield Listed(name, item["Size"], age)

    def delete(self, name: str) -> None:
        """Removes an object, if it exists."""
        with self._errors_told():
            self._answer("delete_object", name)

    def unfinished(self) -> Iterator[tuple[str, str, float]]:
        """Uploads in parts that were never completed: name, id and age in seconds."""
        for name, age, item in self._listed("list_multipart_uploads", "Uploads", "Initiated"):
            yield name, item["UploadId"], age

    def abort(self, name: str, upload: str) -> None:
        """Removes the parts of an upload that was never completed."""
        with self._errors_told():
            self._answer("abort_multipart_upload", name, UploadId=upload)

    def _listed(self, operation: str, kind: str, written: str, under: str = "") -> Iterator[tuple[str, float, Any]]:
        """Name, age and description of all that the server lists."""
        with self._errors_told():
            for page in self.client.get_paginator(operation).paginate(Bucket=self.bucket, Prefix=self.prefix + under):
                for item in page.get(kind, ()):
                    yield item["Key"].removeprefix(self.prefix), _age(page, item[written]), item

    def _answer(self, operation: str, name: str, absent: Collection[str] = (), **asked: Any) -> Any:
        """The server's answer about an object, or None where it refuses with one of the codes in `absent`."""
        try:
            return getattr(self.client, operation)(Bucket=self.bucket, Key=self.prefix + name, **asked)
        except ClientError as error:
            if code_of(error) in absent:
                return None
            raise

    @contextmanager
    def _errors_told(self) -> Generator[None]:
        """Raises StoreUnreachable or StoreRefused, in one line, in place of boto3's errors.

        The text of boto3's errors is left out: it may contain an address or a header with secrets.
        """
        try:
            yield
        except S3UploadFailedError as error:
            cause = error.__context__
            raise self._refusal(cause) if isinstance(cause, ClientError) else self._silence(error) from None
        except ClientError as error:
            raise self._refusal(error) from None
        except (NoCredentialsError, PartialCredentialsError) as error:
            hint = explain_error(error, **SETTINGS).hint
            raise StoreRefused(f"no credentials for the store {self.address}: {hint}") from None
        except (*NO_ANSWER, HTTPError, ConnectionError, TimeoutError) as error:
            raise self._silence(error) from None
        except ValueError as error:  # boto3's error for an endpoint that is not an address
            if "endpoint" not in str(error).lower():
                raise
            raise StoreRefused("AWS_ENDPOINT_URL is not an address: write it as https://host:port") from None

    def _silence(self, error: BaseException) -> StoreUnreachable:
        found = explain_error(error, **SETTINGS)
        kind = StoreRefused if found.lasting else StoreUnreachable
        return kind(f"the store {self.address} cannot be reached ({type(error).__name__}): {found.hint}")

    def _refusal(self, error: ClientError) -> StoreUnreachable:
        code, status = code_of(error), int(error.response["ResponseMetadata"]["HTTPStatusCode"])
        if code == "NoSuchBucket":
            return StoreRefused(f"there is no bucket {self.bucket}: create it, or correct SUBLIM_STORE")
        hint = advice(error, **SETTINGS)
        if code in PASSING or (status not in PERMANENT and hint is None):
            hint = hint or "run again when it is back"
            return StoreUnreachable(f"the store {self.address} fails ({status} {code}): {hint}")
        hint = hint or (RIGHTS if status in (401, 403) else "check AWS_ENDPOINT_URL")
        return StoreRefused(f"the store {self.address} refuses ({status} {code}): {hint}")


def _whole(name: str, default: int) -> int:
    """A positive integer from an environment variable."""
    text = os.environ.get(name) or str(default)
    if not text.isascii() or not text.isdigit() or not int(text):
        raise UserError(f"{name} is {text!r}: set a whole number above 0, or unset it")
    return int(text)


def _age(answer: Any, written: datetime) -> float:
    """Seconds since an object was written, by the server's clock; by ours if the server sends no date."""
    sent = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
    now = parsedate_to_datetime(sent) if sent else datetime.now(UTC)
    return (now - written).total_seconds()
