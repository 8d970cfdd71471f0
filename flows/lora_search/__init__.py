"""The search for training parameters, by one worker or by several that share a study."""
