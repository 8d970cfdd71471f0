"""Toy models: superposition, and digits that pass from teacher to student.

Their stages start in `superposition` and `mnist`. They share only streams of random numbers.
"""
