"""The stages of a parameter search as cached tasks."""

from tasks.stage import Stage

heldout_loss = Stage("heldout_loss", "sublim.heldout:heldout_loss", gpu=True)
