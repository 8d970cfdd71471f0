"""Errors that speak to the person who runs an experiment."""


class UserError(Exception):
    """A mistake in a config, a file or the data: one line that says what to do. The command exits with 2."""


class NotEnoughRows(UserError):
    """The filter left fewer rows than the student needs."""
