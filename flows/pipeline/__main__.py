"""`python -m flows.pipeline`: the same as `sublim run pipeline`."""

import sys

if __name__ == "__main__":
    from flows.__main__ import main

    sys.exit(main(["run", "pipeline", *sys.argv[1:]]))
