"""The report's plots, one file for each question that a plot answers."""
