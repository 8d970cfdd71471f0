"""The HTML report: what it shows, its words, its figures and the files beside it.

No stage starts here; flows render it at the end of a run.
"""
