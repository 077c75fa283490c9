"""Compares the native backend with the best alternatives of others: `python -m tests.benchmarks`.

competitors    what is compared: native, SpikingJelly's neurons in their modes, a network of ReLUs
measure        peak live tensor bytes; times of alternated iterations
rows           the comparisons, and the wanted ratio of each
"""
