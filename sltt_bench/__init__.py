"""sltt-bench: benchmark and reproduce training methods for spiking neural networks."""

__version__ = "0.2.0"
