"""The `sublim` command, one file for each group of subcommands.

Nothing imports it but `flows/__main__.py`.
"""
