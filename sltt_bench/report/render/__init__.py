"""The report on paper, page, terminal and disk: one file an output format, and what writes them all."""
