"""`python -m flows.sweep`: the same as `sublim run sweep`."""

import sys

if __name__ == "__main__":
    from flows.__main__ import main

    sys.exit(main(["run", "sweep", *sys.argv[1:]]))
