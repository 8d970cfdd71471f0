"""The command that starts this Python as a child process which finds the same modules as its parent."""

import os
import sys


def python() -> list[str]:
    """The interpreter, with -P unless this process looks for modules in the working folder too.

    Without -P, `python -m` and `python -c` look there first: a user's own tasks/ or random.py would be imported.
    """
    try:
        here = os.path.realpath(os.curdir)
    except FileNotFoundError:  # the working folder was removed
        return [sys.executable]
    looks_here = any(not place or os.path.realpath(place) == here for place in sys.path)
    return [sys.executable] if looks_here else [sys.executable, "-P"]
