"""Writes the description of the format for readers without this tool: `python -m sltt_bench.results.describe`.

Its output is `results/README.md`; a test keeps the two equal, so that the schema is documented once.
"""

from sltt_bench.results.schema import FILES, SCHEMA_VERSION

_EXAMPLE = """\
import json
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import t

runs = []
for path in (path for name in ("digits", "digits-saccade") for path in Path("results", name).glob("*/cells.csv")):
    folder = path.parent
    cells = pd.read_csv(folder / "cells.csv").sort_values("attempt").drop_duplicates("cell_id", keep="last")
    cells = cells[(cells["kind"] == "run") & (cells["status"] == "ok") & ~cells["smoke"] & ~cells["synthetic"]]
    if len(cells):
        epochs = pd.read_csv(folder / "epochs.csv").sort_values("attempt")
        epochs = epochs.drop_duplicates(["cell_id", "epoch"], keep="last")
        warm, by_cell = epochs[~epochs["cold"]].groupby("cell_id"), epochs.groupby("cell_id")
        cells["epoch_s"] = cells["cell_id"].map(warm["train_s"].median())
        cells["peak"] = cells["cell_id"].map(by_cell["peak_tensor_bytes"].max())
        provenance = json.loads((folder / "provenance.json").read_text())
        runs.append(cells.assign(run=folder.name, revision=provenance["git_revision"][:12]))
alike = ["recipe", "recipe_hash", "backend", "device_name", "precision", "revision"]
for group, cells in pd.concat(runs).groupby(alike):
    pairs = cells.pivot(index=["run", "seed"], columns="method", values=["epoch_s", "peak", "last_test_top1"])
    for method in pairs["peak"].columns:
        top1, ratio = 100 * pairs["last_test_top1"][method], pairs["epoch_s"][method] / pairs["epoch_s"]["bptt"]
        logs = np.log(ratio.dropna())
        low, high = np.exp(logs.mean() + t.interval(0.95, len(logs) - 1) * np.array(logs.std() / len(logs) ** 0.5))
        memory = (pairs["peak"][method] / pairs["peak"]["bptt"]).mean()
        print(group[0], group[2], group[5], method, f"{top1.mean():.2f} ± {top1.std():.2f}",
              f"{np.exp(logs.mean()):.2f} [{low:.2f}, {high:.2f}]", f"{memory:.2f}", f"n = {len(logs)}")
"""
"""Forms the comparisons with pandas alone."""

_INTRODUCTION = f"""# Results: the format on disk

Schema version {SCHEMA_VERSION}. This page is made from the schema itself
(`python -m sltt_bench.results.describe > results/README.md`), so it cannot fall behind it.

Every run has a folder of its own, `<recipe>/<run>/`, where `<run>` is the time of its start (UTC) and
four random digits. Files are only ever appended to, a row at a time, and flushed to disk before the
next; what is replaced as a whole (JSON, checkpoints) is written beside the old file first.

| file | content |
|---|---|
| `recipe.yaml` | the recipe as resolved: `extends` followed, defaults filled in, overrides of the first grid point applied |
| `provenance.json` | what the run was started with: command line, versions, git revision with a dirty flag, `source_sha256` of the package's own code, CPU, GPU, driver, settings; under `commands` the same of each command that worked on it, resumed ones included; under `cells`, cell_id, `attempts`, attempt: which of the commands (`command`, from 0), `source_sha256` as that process found it, the plug-ins that it loaded with their versions and `source_sha256`, `weights_sha256` and `data_sha256` of the weights that training began with and of its first batch and all labels, `training_samples_sha256` and `evaluated_samples_sha256` of samples that are evenly spread over the training split, before they are augmented, and over the validation and test splits that are evaluated (64 MiB of a split in memory, 32 samples of one in files; absent in files of earlier versions), `ranks_began_with` of each process that shared its batches (these digests, `labels_sha256` of all labels and `weights_sha256`), torch, its flags, the kernels that ran, the sensors that were absent and why. What is there is never rewritten |
| `cells/<cell_id>.json` | one resolved cell: all that its process was told |
| `cells.csv` | one row for each attempt at a cell, written when it ended, however it ended |
| `epochs.csv` | one row for each finished epoch |
| `ranks.csv` | the figures of each process in each finished epoch (only where several share a cell's batches) |
| `timeline.csv` | samples of the GPU over time (only where there is one) |
| `gradients.csv` | `analyze gradients`: full gradient and spatial part, by network, layer and parameter |
| `draws.csv` | `analyze gradients`: how SLTT-K's random gradient relates to SLTT's, for each K |
| `method_gradients.csv` | `analyze gradients`: gradients of other methods beside BPTT's, by network, layer and parameter |
| `operations.csv` | `analyze gradients`: counted multiplications of each method |
| `estimates.csv` | `estimate`: memory by cause, multiplications and limits of each cell, computed and not measured |
| `tuning.csv` | `tune`: each trial with its validation accuracy, and which setting was chosen for each method |
| `bench.csv` | `python -m tests.benchmarks`: the native backend beside the strongest baselines |
| `logs/<cell_id>-<attempt>.log` | what the cell's process printed (only where it printed anything) |
| `checkpoints/<cell_id>.pt` | while a cell is unfinished, or where a later stage starts from it; not kept in git |
| `*.torn` | an unfinished last line that a crash left, set aside by the run that resumed |

Rules for a reader:

- An empty cell means "not measured" (the reason is in `provenance.json`); it never means 0.
- A last line without a line break is torn: ignore it.
- Within one run's folder: of two rows of `epochs.csv` with the same `cell_id` and `epoch`, and of two rows of
  `cells.csv` with the same `cell_id`, the later `attempt` counts. (With a checkpoint after each epoch, as recipes have it,
  there are no two: a resumed cell goes on after the last epoch that has a row.) Of two rows of `tuning.csv` with the same
  `cell_id` the last one counts. In another folder the same `cell_id` is a
  repetition, a measurement of its own: neither replaces the other.
- Use a cell only if its status is ok, its epochs are all there (`epochs_planned`), and its attempts ran on one
  `device_name`, those included that left rows in `epochs.csv` alone (their runner was killed).
- Compare only what is comparable: the same `recipe_hash`, `device_name`, `precision` and `backend`, and in
  `provenance.json` the same `source_sha256` (in older files: the same revision without local changes), plug-ins but for
  the method's own, torch, CUDA, driver, CPU, threads and flags,
  `neighbours` above 0 in both or in none, and the same `ranks` in all their epochs;
  different methods, or different backends for one method, never both at once.
- `peak_*` columns are different quantities. Never mix two of them in one ratio.
- The first epoch of a process is `cold`; times are compared over the others.
- `epochs.csv` alone tells its rows apart by `kind`, `synthetic`, `smoke`, `overrides` and `device_name`; files of earlier
  versions lack these columns, or have them empty: there `cells.csv` says it, by `cell_id` and `attempt`.

How a comparison is formed:

1. A cell's time is the median of `train_s` over its warm epochs; its memory the largest peak of the same epochs
   (`peak_tensor_bytes`: of all); its accuracy that of the last epoch.
2. A pair is one seed of one run, measured with both methods: a machine is not equally fast on all days. (Bytes and
   accuracies do not depend on the day: there repetitions of a seed are averaged, and a pair is a seed.)
3. The ratio of times or bytes is the geometric mean of the pairs' ratios; the means beside it are the geometric means
   of the same pairs, so that their quotient is the ratio. A difference of accuracy is the mean of the pairs'
   differences.
4. The interval is Student's t at 95 % over the pairs, of ratios over their logarithms. `peak_tensor_bytes` is exact and
   needs none.

These lines do it for the recipes whose names begin with `digits` (pandas and scipy alone, from the folder above
`results/`); they print the table of `docs/results.md`, and a test holds them to it:

```python
{_EXAMPLE}```
"""


def describe() -> str:
    """The whole page in Markdown."""
    parts = [_INTRODUCTION]
    for file, columns in FILES.items():
        rows = "\n".join(f"| `{c.name}` | {c.type} | {c.meaning} |" for c in columns)
        parts.append(f"## `{file}`\n\n| column | type | meaning |\n|---|---|---|\n{rows}\n")
    return "\n".join(parts)


if __name__ == "__main__":
    print(describe(), end="")
