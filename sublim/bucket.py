"""Files of a public S3 bucket: listed page by page, fetched side by side, kept in scratch until all are there."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, cast

import boto3
from botocore import UNSIGNED
from botocore.config import Config as ClientConfig
from botocore.exceptions import BotoCoreError, ClientError

from sublim.errors import UserError
from sublim.killpoints import kill_point
from sublim.neuronpedia_config import LabelsConfig
from sublim.progress import progress
from sublim.tensor_files import sync

CHUNK = 2**20
# What a broken transfer raises: botocore's own, and the bare ones that its stream lets through.
BROKEN = (BotoCoreError, ConnectionError, TimeoutError)


class Stored(NamedTuple):
    """A file in the bucket."""

    key: str
    size: int
    tag: str
    """Changes with the content."""

    @property
    def local(self) -> str:
        """Its name in scratch: made of digits, so that no key can lead out of the folder."""
        return hashlib.sha256(f"{self.key}\n{self.tag}".encode()).hexdigest()


def open_bucket(config: LabelsConfig) -> Any:
    """An S3 client without credentials."""
    settings = ClientConfig(
        signature_version=UNSIGNED,
        max_pool_connections=config.workers,
        retries={"max_attempts": config.attempts, "mode": "standard"},
        s3={"addressing_style": "path"} if config.endpoint else None,
    )
    open_client = cast(Any, boto3).client
    return open_client("s3", region_name=config.region, endpoint_url=config.endpoint, config=settings)


def listed(client: Any, config: LabelsConfig) -> list[Stored]:
    """Every file under the prefix, by key. UserError that names what is near when there is none."""
    try:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=config.bucket, Prefix=config.prefix)
        found = [Stored(one["Key"], one["Size"], one["ETag"].strip('"')) for one in _contents(pages)]
        if not found:
            raise UserError(_nothing(client, config))
    except ClientError as error:
        raise UserError(f"the bucket {config.bucket} refused: {error}: look at bucket and endpoint") from error
    except BotoCoreError as error:
        raise UserError(f"the bucket {config.bucket} cannot be reached ({error}): look at endpoint") from error
    for one in found:
        check_name(one.key.removeprefix(config.prefix), config.bucket)
    return sorted(found)


def check_name(name: str, where: str) -> None:
    """Refuses a name that leads out of its folder."""
    if PurePosixPath(name).is_absolute() or ".." in name.replace("\\", "/").split("/") or "\0" in name:
        raise UserError(f"{where} has an entry {name!r} that leaves its folder: nothing of it is taken")


def fetch(client: Any, config: LabelsConfig, wanted: Sequence[Stored], folder: Path) -> list[Path]:
    """The files in `folder`, in the order asked for; those that are there already are not fetched again."""
    folder.mkdir(exist_ok=True)
    with progress("fetching labels", len(wanted)) as advance, ThreadPoolExecutor(config.workers) as pool:
        try:
            under_way = [pool.submit(_fetch_one, client, config, one, folder) for one in wanted]
            for done in as_completed(under_way):
                done.result()
                advance(1)
        finally:
            pool.shutdown(cancel_futures=True)
    return [folder / one.local for one in wanted]


def _fetch_one(client: Any, config: LabelsConfig, one: Stored, folder: Path) -> None:
    path, draft = folder / one.local, folder / f"{one.local}.draft"
    if path.exists():
        return
    trouble: Exception | None = None
    for _ in range(config.attempts):
        try:
            _go_on(client, config, one, draft)
        except BROKEN as error:
            trouble = error
            continue
        except ClientError as error:
            raise UserError(f"{config.bucket}/{one.key} cannot be fetched: {error}: run again") from error
        if draft.stat().st_size == one.size:
            draft.replace(path)
            kill_point("labels:file")
            return
    have = draft.stat().st_size if draft.exists() else 0
    why = f" ({trouble})" if trouble else ""
    raise UserError(
        f"{config.bucket}/{one.key} broke off at {have} of {one.size} bytes, {config.attempts} times{why}: "
        "run again, what came is kept"
    )


def _go_on(client: Any, config: LabelsConfig, one: Stored, draft: Path) -> None:
    """Fetches what `draft` lacks; the tag makes sure that it is of the same content."""
    have = draft.stat().st_size if draft.exists() else 0
    if have > one.size:
        draft.unlink()
        have = 0
    part = {"Range": f"bytes={have}-"} if have else {}
    if have == one.size and one.size:
        return
    body = client.get_object(Bucket=config.bucket, Key=one.key, IfMatch=one.tag, **part)["Body"]
    with draft.open("ab") as file:
        try:
            while block := body.read(CHUNK):
                file.write(block)
        finally:
            file.flush()
            os.fsync(file.fileno())
    sync(draft.parent)


def _contents(pages: Any) -> Iterator[dict[str, Any]]:
    for page in pages:
        # A key that ends in a slash is a folder's mark, as some tools leave it.
        yield from (one for one in page.get("Contents", []) if not one["Key"].endswith("/"))


def _nothing(client: Any, config: LabelsConfig) -> str:
    """What there is instead, at the nearest folder that has anything."""
    for parent in (f"{config.version}/{config.model}/", f"{config.version}/", ""):
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=config.bucket, Prefix=parent, Delimiter="/")
        near = [
            one["Prefix"].removeprefix(parent).rstrip("/") for page in pages for one in page.get("CommonPrefixes", [])
        ]
        if near:
            more = f" and {len(near) - 20} more" if len(near) > 20 else ""
            return (
                f"{config.bucket}/{config.prefix} is empty; {parent or 'the bucket'} has {', '.join(near[:20])}{more}"
            )
    return f"the bucket {config.bucket} is empty: look at bucket and endpoint"
