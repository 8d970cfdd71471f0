"""Carriers: what the teacher writes and the student is trained on. Today these are number lists.

No stage starts here; `rows` generates and filters. A carrier says how its prompts are drawn and how an answer is read
back.
"""
