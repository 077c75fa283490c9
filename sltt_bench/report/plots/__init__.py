"""The report's drawings: lines, bars, dots and heat maps, each in one way; sections say what is drawn."""

import logging

# Of a HOME that cannot be written matplotlib says in the middle of our output that it keeps its cache elsewhere.
logging.getLogger("matplotlib").setLevel(logging.ERROR)
