"""The search for training parameters, by one worker or by several workers on one study."""
