"""Which Prefect server a run uses."""

import os
import subprocess
import sys

LATE = """
import os, sys
import prefect.context
from flows import server
os.environ["PREFECT_API_URL"] = sys.argv[1]
server.ensure()
print(prefect.context.get_settings_context().settings.api.url)
"""


def test_prefect_that_a_check_imported_uses_the_server_found_afterwards(prefect_server: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    done = subprocess.run(
        [sys.executable, "-c", LATE, prefect_server], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == prefect_server
