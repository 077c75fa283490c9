"""The report's plots, one file for each question that a plot answers."""

import logging

# Of a HOME that cannot be written matplotlib says in the middle of our output that it keeps its cache elsewhere.
logging.getLogger("matplotlib").setLevel(logging.ERROR)
