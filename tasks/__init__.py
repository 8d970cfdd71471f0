"""Prefect tasks, one cached task per stage. Importing this settles Prefect's environment: import it before Prefect."""

import sys

from sublim.core.errors import UserError
from tasks.environment import settle

try:
    settle()
except UserError as error:  # nobody can catch it: the command itself is still being imported
    sys.stderr.write(f"sublim: {error}\n")
    sys.exit(2)
