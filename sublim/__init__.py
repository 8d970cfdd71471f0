"""sublim: the science of subliminal learning and its plumbing; nothing here knows Prefect."""
