"""The folders at the top of a store that hold no artifacts."""

WRITTEN = ("records", "locks", "scratch", "drafts", "runs")
RESERVED = (*WRITTEN, "studies")
