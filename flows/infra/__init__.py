"""The Prefect server and its work pools: finding or starting a server, registering pools, restarting lost runs.

Nothing here imports a flow.
"""
