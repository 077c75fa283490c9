"""The native backend side by side with the strongest that others offer: `python -m tests.benchmarks`.

competitors    who runs: native, SpikingJelly's neurons in their modes, a network of ReLUs
measure        peak live tensor bytes; times of alternated iterations
rows           what is set against what, and the ratio that is wanted
"""
