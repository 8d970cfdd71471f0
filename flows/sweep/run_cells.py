"""Running the cells of a sweep that the store does not have: one after another in this process, or on a work pool."""

import time
from collections.abc import Iterator
from typing import Any, NamedTuple
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.logging import get_run_logger

from flows.pipeline.flow import pipeline
from flows.sweep.cells import Cell, Measured, cell_digest, compared_by, known, remember, results_of, where_of
from flows.sweep.config import Pool, SweepConfig
from sublim.core.errors import UserError
from sublim.store.folder import Store

WAITING_SECONDS = 60.0


class Outcome(NamedTuple):
    """The outcome of a cell."""

    cell: Cell
    state: str
    """Cached, Completed or Failed."""
    results: list[Measured]
    """Its comparisons; none if it failed."""
    reason: str | None
    """Why the cell failed; None if it did not."""


def run_cells(config: SweepConfig, cells: list[Cell], store: Store) -> list[Outcome]:
    """Runs the cells that the store does not have, and returns the outcomes of all, in the order of `cells`.

    A cell that fails does not stop the others.
    """
    done: dict[int, Outcome] = {}
    for cell in cells:
        if found := known(store, cell, config):
            done[id(cell)] = Outcome(cell, "Cached", found, None)
    missing = [cell for cell in cells if id(cell) not in done]
    get_run_logger().info("%d of %d cells are in the store", len(done), len(cells))
    ran = _on_pool(config, config.where, missing) if isinstance(config.where, Pool) else _here(config, missing)
    for cell, run_id, state in ran:
        done[id(cell)] = _outcome(store, cell_digest(cell, where_of(config)), cell, run_id, state)
    return [done[id(cell)] for cell in cells]


def _outcome(store: Store, name: str, cell: Cell, run_id: str, state: State[Any] | None) -> Outcome:
    if state is None or not state.is_completed():
        said = " ".join((state.message or state.name or "failed").split()) if state else "its run is gone"
        reason = said.removeprefix("Flow run encountered an exception: ")
        get_run_logger().warning("cell %s failed: %s", cell.name, reason)
        return Outcome(cell, "Failed", [], reason)
    compared = compared_by(store, run_id)
    if not compared:
        reason = f"its run completed, but {store.root} has no record of it: give worker and sweep the same SUBLIM_STORE"
        return Outcome(cell, "Failed", [], reason)
    remember(store, name, compared)
    return Outcome(cell, "Completed", results_of(compared), None)


def _here(config: SweepConfig, cells: list[Cell]) -> Iterator[tuple[Cell, str, State[Any]]]:
    for cell in cells:
        named = pipeline.with_options(flow_run_name=f"cell {cell.name}")
        state: State[Any] = named(preset=config.preset, settings=cell.settings, return_state=True)
        yield cell, str(state.state_details.flow_run_id), state


def _on_pool(config: SweepConfig, pool: Pool, cells: list[Cell]) -> Iterator[tuple[Cell, str, State[Any] | None]]:
    """Creates a run of the deployment for each cell, then yields the cells as their runs end."""
    waiting: dict[UUID, Cell] = {}
    for cell in cells:
        handed = run_deployment(
            pool.deployment,
            parameters={"preset": config.preset, "settings": cell.settings},
            flow_run_name=f"cell {cell.name}",
            timeout=0,
            tags=["sweep"],
        )
        assert isinstance(handed, FlowRun)
        waiting[handed.id] = cell
    started = told = time.monotonic()
    with get_client(sync_client=True) as client:
        while waiting:
            ended = [(run_id, state) for run_id in waiting for done, state in [_state(client, run_id)] if done]
            for run_id, state in ended:
                yield waiting.pop(run_id), str(run_id), state
            if waiting and time.monotonic() - told > WAITING_SECONDS:
                told = time.monotonic()
                minutes = (told - started) / 60
                get_run_logger().info(
                    "%d cells are not done after %.0f min; `prefect work-pool ls` shows whether the pool has workers",
                    len(waiting),
                    minutes,
                )
            if waiting and not ended:
                time.sleep(pool.poll_seconds)


def _state(client: SyncPrefectClient, run_id: UUID) -> tuple[bool, State[Any] | None]:
    """Whether a run has ended, and its state; a run that was deleted counts as ended, without a state."""
    try:
        state = client.read_flow_run(run_id).state
    except ObjectNotFound:
        return True, None
    return state is not None and state.is_final(), state


def check_deployment(pool: Pool) -> None:
    """Raises UserError when the server has no such deployment."""
    with get_client(sync_client=True) as client:
        try:
            client.read_deployment_by_name(pool.deployment)
        except ObjectNotFound as error:
            raise UserError(
                f"the server has no deployment {pool.deployment}: `sublim deploy` registers those of prefect.yaml, "
                "or run the cells here with where.kind=here"
            ) from error
