"""The only owner of files under `results/`: their schema, the writer and the reader."""
