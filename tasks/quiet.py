"""Prefect's log lines about failures, held to what helps: a user's mistake is one line, a bug has its traceback."""

import logging

from sublim.core.errors import UserError

LOGGERS = ("prefect.task_runs", "prefect.flow_runs")  # where Prefect's engines log what a body raised


def without_user_traceback(record: logging.LogRecord) -> bool:
    """Lets every record pass; one that carries a UserError leaves its traceback behind."""
    if record.exc_info and isinstance(record.exc_info[1], UserError):
        record.exc_info = record.exc_text = None
    return True


def no_unwritten_failure(record: logging.LogRecord) -> bool:
    """Drops Prefect's warning that it could not store an exception as a result: a store holds artifacts only."""
    return not (record.levelno == logging.WARNING and str(record.msg).startswith("Failed to write result: %s"))


def install() -> None:
    """Puts the filters on Prefect's loggers, where they outlive Prefect's own set-up of logging; once is enough."""
    for name in LOGGERS:
        logging.getLogger(name).addFilter(without_user_traceback)
        logging.getLogger(name).addFilter(no_unwritten_failure)
