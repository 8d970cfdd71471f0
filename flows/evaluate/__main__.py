"""`python -m flows.evaluate`: the same as `sublim run evaluate`."""

import sys

if __name__ == "__main__":
    from flows.__main__ import main

    sys.exit(main(["run", "evaluate", *sys.argv[1:]]))
