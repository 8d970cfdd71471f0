"""The stages of a parameter search as cached tasks."""

from tasks.stage import Stage

heldout_loss = Stage("heldout_loss", "sublim.heldout:heldout_loss", gpu=True)
train_rung = Stage("train_rung", "sublim.search_training:train_rung", gpu=True)
draw_search = Stage("draw_search", "sublim.search_figures:draw_search")
