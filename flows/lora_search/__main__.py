"""`python -m flows.lora_search`: the same as `sublim run lora-search`."""

import sys

if __name__ == "__main__":
    from flows.__main__ import main

    sys.exit(main(["run", "lora-search", *sys.argv[1:]]))
