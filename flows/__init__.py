"""Flows: stages composed into experiments, with their controls, parameters and reports."""

import tasks as tasks  # settles Prefect's environment before Prefect is imported
