"""Independent stages side by side, one on each card."""

import os
from collections.abc import Callable, Sequence
from contextvars import copy_context
from threading import Thread
from typing import TypeVar

from sublim.core.errors import UserError
from sublim.core.hardware import gpu_count
from tasks.processes import Environment, lane, lane_number, one_process
from tasks.stage import is_looking_up

T = TypeVar("T")


def lanes() -> list[Environment]:
    """What each process that runs stages side by side has in its environment.

    One for each visible card; one in all without cards. SUBLIM_LANES sets another number, at most that of the cards;
    on a CPU the cores are then divided among so many. Raises UserError for what is no number.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    cards = [str(each) for each in range(gpu_count())] if visible is None else visible.split(",")[: gpu_count()]
    text = os.environ.get("SUBLIM_LANES") or str(len(cards) or 1)
    if not text.isdecimal() or not int(text):
        raise UserError(f"SUBLIM_LANES is {text!r}: give the number of stages that may run at the same time")
    if cards:
        return [{"CUDA_VISIBLE_DEVICES": card} for card in cards[: int(text)]]
    threads = max(1, (os.cpu_count() or 1) // int(text))
    return [{"OMP_NUM_THREADS": str(threads)} for _ in range(int(text))]


def side_by_side(calls: Sequence[Callable[[], T]]) -> list[T]:
    """Calls stages that do not need each other, as many at once as there are lanes; what they give, in order.

    The stages of a lane share one process, so that a model they have in common is loaded once. After a failure no
    further call begins; it is raised when those that had begun are done.
    """
    environments = lanes()[: len(calls)]
    if len(environments) < 2 or lane_number() is not None or is_looking_up():
        with one_process():
            return [call() for call in calls]
    waiting = iter(range(len(calls)))  # one for all lanes: each place goes to the lane that is free first
    found: dict[int, T] = {}
    failures: list[BaseException] = []

    def work(number: int, environment: Environment) -> None:
        with lane(number, environment):
            for place in waiting:
                if failures:
                    return
                try:
                    found[place] = calls[place]()
                except BaseException as error:  # noqa: BLE001 - raised in the thread that asked
                    failures.append(error)

    # Daemons: whoever interrupts the run must not wait for their stages. Their processes end with this one.
    threads = [
        Thread(target=copy_context().run, args=(work, number, environment), daemon=True)
        for number, environment in enumerate(environments)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return [found[place] for place in range(len(calls))]
