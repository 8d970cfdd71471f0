"""This Python for child processes, which find the same modules as their parent."""

import os
import sys


def python() -> list[str]:
    """The interpreter, told to look for no modules in the working folder where this process does not either.

    `python -m` and `-c` look there first: a user's own tasks/ or random.py would be taken for ours or the library's.
    """
    try:
        here = os.path.realpath(os.curdir)
    except FileNotFoundError:  # it was removed
        return [sys.executable]
    looks_here = any(not place or os.path.realpath(place) == here for place in sys.path)
    return [sys.executable] if looks_here else [sys.executable, "-P"]
