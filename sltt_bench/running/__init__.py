"""Running: every cell of a plan an attempt in a process of its own, and a row for every ending."""
