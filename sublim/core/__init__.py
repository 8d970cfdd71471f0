"""What everything rests on: configs, digests, errors, progress, provenance and facts about this machine.

No stage starts here. Every other room may import any of it, and it imports none of them.
"""
