"""The schema, writer and reader of the files under `results/`; no other package touches them."""
