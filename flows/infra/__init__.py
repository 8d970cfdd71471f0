"""The Prefect server and its work pools: finding or starting a server, registering pools, and runs that were lost.

It imports no flow.
"""
