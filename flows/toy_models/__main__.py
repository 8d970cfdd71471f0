"""`python -m flows.toy_models`: the same as `sublim run toy-models`."""

import sys

if __name__ == "__main__":
    from flows.__main__ import main

    sys.exit(main(["run", "toy-models", *sys.argv[1:]]))
