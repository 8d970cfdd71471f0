"""The flow of the superposition experiments: do students rebuild features that they never learned?"""
