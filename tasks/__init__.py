"""Prefect tasks, one cached task per stage. Importing this settles Prefect's environment: import it before Prefect."""

import os

_DEFAULTS = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",  # DO_NOT_TRACK does not stop the server's own heartbeat
    "PREFECT_LOGGING_EXTRA_LOGGERS": "sublim",
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "WANDB_MODE": "disabled",
    "TOKENIZERS_PARALLELISM": "false",
    # A spinning OpenMP worker waits a whole scheduler tick for a core that the Prefect server or a worker is using:
    # small matmuls were seen 30 times slower. One that never spins pays for each wake-up: training took 15 % longer.
    "GOMP_SPINCOUNT": "20000",
    "TQDM_DISABLE": "1",  # stages report their own progress
}
for _name, _value in _DEFAULTS.items():
    os.environ.setdefault(_name, _value)
