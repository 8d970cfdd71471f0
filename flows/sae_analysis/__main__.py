"""`python -m flows.sae_analysis`: the same as `sublim run sae-analysis`."""

import sys

if __name__ == "__main__":
    from flows.__main__ import main

    sys.exit(main(["run", "sae-analysis", *sys.argv[1:]]))
