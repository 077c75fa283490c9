"""Training: a cell's experiment is assembled, and the engine goes through its epochs."""
