"""Log lines of a mistake of the user's: one line that says what to do, without the traceback that a bug deserves."""

import logging

from sublim.errors import UserError

LOGGERS = ("prefect.task_runs", "prefect.flow_runs")  # where Prefect's engines log what a body raised


def without_user_traceback(record: logging.LogRecord) -> bool:
    """Lets every record pass; one that carries a UserError leaves its traceback behind."""
    if record.exc_info and isinstance(record.exc_info[1], UserError):
        record.exc_info = record.exc_text = None
    return True


def install() -> None:
    """Puts the filter on Prefect's loggers, where it outlives Prefect's own set-up of logging; once is enough."""
    for name in LOGGERS:
        logging.getLogger(name).addFilter(without_user_traceback)
