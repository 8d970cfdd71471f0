"""`python -m flows.steering`: the same as `sublim run steering`."""

import sys

if __name__ == "__main__":
    from flows.__main__ import main

    sys.exit(main(["run", "steering", *sys.argv[1:]]))
