"""Named points at which a test can kill this process, as a power failure would."""

import os
import signal


def kill_point(name: str) -> None:
    """Sends SIGKILL to this process when SUBLIM_KILL_AT is `name`; otherwise does nothing."""
    if os.environ.get("SUBLIM_KILL_AT") == name:
        os.kill(os.getpid(), signal.SIGKILL)
