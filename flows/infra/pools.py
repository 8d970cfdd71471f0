"""Work pools as prefect.yaml declares them: the environment of their runs, and the GPU that a worker needs."""

import os
import re
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field

from sublim.core.config import Config
from sublim.core.errors import UserError
from sublim.core.hardware import Gpu
from sublim.files.text_files import parse_yaml

GIB = 2**30
UNSET = re.compile(r"\{\{\s*\$(\w+)\s*\}\}")


class Card(Config):
    """The smallest GPU that can do a pool's runs."""

    name: str
    """Name of the model, for messages."""
    memory_gib: Annotated[float, Field(gt=0)]
    """Nominal memory in GiB. The driver may report up to 10 % less."""
    capability: Annotated[str, Field(pattern=r"^\d+\.\d+$")]
    """CUDA compute capability, such as 8.6."""


class Pool(Config):
    """A work pool: what it is for, the GPU it needs, and the environment variables of its runs."""

    about: str
    """Description on the pool's page in the UI."""
    card: Card | None = None
    """None for a pool whose runs need no GPU."""
    env: dict[str, str]
    """Environment variables of every run; a deployment may override them."""


def repository() -> Path:
    """The checkout that deployments run from: SUBLIM_REPO, or the checkout that holds this module."""
    return Path(os.environ.get("SUBLIM_REPO") or Path(__file__).parents[2])


def declared(path: Path | None = None) -> dict[str, Pool]:
    """The pools that prefect.yaml defines. Raises UserError when the file cannot be read or defines none."""
    path = path or repository() / "prefect.yaml"
    try:
        found = parse_yaml(path.read_text(encoding="utf-8-sig"))["definitions"]["pools"]
        return {name: Pool.model_validate(pool) for name, pool in found.items()}
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): set SUBLIM_REPO to a checkout of sublim") from error
    except (yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError) as error:
        why = " ".join(str(error).split())
        raise UserError(f"{path} defines no pools that can be read ({why}): compare sublim's own") from error


def filled(env: dict[str, str]) -> dict[str, str]:
    """`env` with each `{{ $NAME }}` replaced by that environment variable.

    An entry whose variable is unset or empty is left out.
    """
    # Prefect itself would set an empty string, which is not the same as an unset variable.
    kept = {name: text for name, text in env.items() if all(os.environ.get(each) for each in UNSET.findall(text))}
    return {name: UNSET.sub(lambda match: os.environ[match[1]], text) for name, text in kept.items()}


def template(pool: Pool) -> dict[str, Any]:
    """The pool's base job template: that of Prefect's process worker, with the pool's environment and GPU."""
    from prefect.workers.process import ProcessWorker

    found = ProcessWorker.get_default_base_job_template()
    properties = found["variables"]["properties"]
    properties["env"]["default"] = filled(pool.env)
    properties["card"] = {
        "title": "Card",
        "type": "object",
        "description": "The smallest GPU that a worker of this pool may have. `sublim worker` checks it.",
        "default": pool.card.model_dump() if pool.card else {},
    }
    return found


def card_of(base_job_template: dict[str, Any]) -> Card | None:
    """The GPU that a pool's base job template asks for, or None."""
    default = base_job_template.get("variables", {}).get("properties", {}).get("card", {}).get("default")
    return Card.model_validate(default) if default else None


def environment_of(base_job_template: dict[str, Any]) -> dict[str, str]:
    """The environment variables that a pool's base job template sets."""
    return base_job_template.get("variables", {}).get("properties", {}).get("env", {}).get("default") or {}


def lacking(card: Card, found: Gpu | None) -> str | None:
    """Why a machine's GPU is too small for a pool, or None when it is not."""
    wanted = f"a GPU like {card.name} ({card.memory_gib:g} GiB, compute capability {card.capability})"
    if found is None:
        return f"its runs need {wanted} and no GPU is visible here"
    major, minor = (int(part) for part in card.capability.split("."))
    have = f"{found.name} with {found.memory / GIB:.1f} GiB, compute capability {'.'.join(map(str, found.capability))}"
    if found.capability < (major, minor) or found.memory < 0.9 * card.memory_gib * GIB:
        return f"its runs need {wanted} and this is {have}"
    return None


def create(name: str, pool: Pool) -> None:
    """Creates the pool on the server, or updates it."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate

    wanted = WorkPoolCreate(name=name, type="process", description=pool.about, base_job_template=template(pool))
    with get_client(sync_client=True) as client:
        client.create_work_pool(wanted, overwrite=True)


def read(name: str) -> dict[str, Any]:
    """The base job template of a pool on the server. Raises UserError when there is no such pool."""
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    with get_client(sync_client=True) as client:
        try:
            return client.read_work_pool(name).base_job_template
        except ObjectNotFound as error:
            known = ", ".join(sorted(pool.name for pool in client.read_work_pools())) or "none"
            raise UserError(
                f"the server has no work pool {name!r} (has: {known}): `make pools` creates them"
            ) from error
