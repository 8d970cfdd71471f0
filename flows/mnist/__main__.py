"""`python -m flows.mnist`: the same as `sublim run mnist`."""

import sys

if __name__ == "__main__":
    from flows.__main__ import main

    sys.exit(main(["run", "mnist", *sys.argv[1:]]))
