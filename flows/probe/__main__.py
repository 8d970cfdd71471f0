"""`python -m flows.probe`: the same as `sublim run probe`."""

import sys

if __name__ == "__main__":
    from flows.__main__ import main

    sys.exit(main(["run", "probe", *sys.argv[1:]]))
