"""`python -m flows.annotate`: the same as `sublim run annotate`."""

import sys

if __name__ == "__main__":
    from flows.__main__ import main

    sys.exit(main(["run", "annotate", *sys.argv[1:]]))
