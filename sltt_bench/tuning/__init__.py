"""Tunes each method in the same way: plans trials, chooses on validation data, and trains the choice."""
