"""The foundation of all rooms: configs, digests, errors, progress, provenance and facts about this machine.

No stage is defined here. Every other room may import any of it, and it imports none of them.
"""
