"""A smaller card: another process holds the rest of this one's memory. `python -m tests.benchmarks.smaller_card GIB`

What asks how much memory is free, as torch and everything here does, then finds that much, and no more can be taken.
"""

import json
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress

from sublim.core.hardware import gpu

GIB = 2**30
SECONDS = 60.0


@contextmanager
def smaller_card(gib: float) -> Generator[None]:
    """Inside, `gib` of the card are free. The rest is given back at the end, also when this process is killed."""
    card = gpu()
    if card is None or card.memory <= gib * GIB:
        yield
        return
    command = [sys.executable, "-m", "tests.benchmarks.smaller_card", str(gib)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            held = json.loads(process.stdout.readline() or "null")
            if held is None:
                raise RuntimeError(f"the card's other {card.memory / GIB - gib:.0f} GiB could not be taken")
            print(f"smaller_card: {held['held']:.1f} GiB held, {held['free']:.1f} free ({card.name})", flush=True)
            yield
        finally:
            process.stdin.close()  # which ends it
            with suppress(subprocess.TimeoutExpired):
                process.wait(SECONDS)
            process.kill()


def main() -> None:
    import torch

    gib = float(sys.argv[1])
    free, _ = torch.cuda.mem_get_info()
    rest = torch.empty(max(0, free - int(gib * GIB)), dtype=torch.uint8, device="cuda")
    left, _ = torch.cuda.mem_get_info()
    print(json.dumps({"held": rest.nbytes / GIB, "free": left / GIB}), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
