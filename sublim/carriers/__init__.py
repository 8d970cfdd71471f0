"""Carriers: the texts that the teacher writes and the student is trained on. At present these are number lists.

No stage starts here; `sublim.rows` generates and filters. A carrier defines its prompts and how an answer is parsed.
"""
