"""Toy experiments on small networks: superposition, and subliminal learning on MNIST.

Their stages are in the rooms `superposition` and `mnist`, which share only the seeds of their random numbers.
"""
