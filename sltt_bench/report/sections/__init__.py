"""What a report is made of: one module a kind of result, each a pure function of results."""
