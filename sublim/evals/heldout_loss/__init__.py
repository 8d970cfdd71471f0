"""The held-out loss: the training loss on rows that were held out of training.

The stage `heldout_loss` starts here.
"""
