"""Writes the description of the format for readers without this tool: `python -m sltt_bench.results.describe`.

Its output is `results/README.md`; a test keeps the two equal, so that the schema is documented once.
"""

from collections.abc import Iterator

from sltt_bench.results.schema import (
    ANALYSIS_KEY,
    CELL_KEY,
    EPOCHS_FILE,
    FILES,
    RANK_FIGURES,
    RANKS_FILE,
    SCHEMA_VERSION,
    Column,
)

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

For users who read results without this tool, with pandas for example: which files there are, what their columns mean, and
how to form a comparison. Schema version {SCHEMA_VERSION}. `python -m sltt_bench.results.describe > results/README.md`
makes this page from the schema.

## Files

Every run has a folder of its own, `<recipe>/<run>/`. `<run>` is the time of its start (UTC) and four random digits. Rows
are only ever appended, one at a time, and flushed to disk before the next. What is replaced as a whole (JSON,
checkpoints) is written beside the old file first.

| file | content |
|---|---|
| `recipe.yaml` | the recipe as resolved: `extends` followed, defaults filled in, overrides of the first grid point applied |
| `provenance.json` | [what the run was made with](#provenancejson): code, versions, hardware, settings, digests |
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

## Rules for a reader

**Missing values.** An empty cell means "not measured", never 0; the reason is in `provenance.json`. A last line without a
line break is torn: ignore it.

**Which row counts**, within the folder of one run:

- of two rows of `epochs.csv` with the same `cell_id` and `epoch`, the later `attempt`. (With a checkpoint after each
  epoch, as recipes have it, there are no two: a resumed cell goes on after the last epoch that has a row.)
- of two rows of `cells.csv` with the same `cell_id`, the later `attempt`;
- of two rows of `tuning.csv` with the same `cell_id`, the last one;
- of two rows of the same attempt (and epoch) that differ, none: files were joined or changed by hand.

In another folder the same `cell_id` is a repetition, a measurement of its own. Neither replaces the other. If `started_utc` and `wall_s` of its first attempt are
equal too, it is a copy: it counts once, or not at all if its figures differ.

**Which cells to use.** Use a cell only if

- its status is ok, and its epochs are all there (`epochs_planned`);
- its attempts ran on one `device_name`. Count attempts that left rows only in `epochs.csv` too (their runner was killed).

**What to compare.** Compare different methods, or different backends for one method, never both at once. Everything else
must be equal:

- `recipe_hash`, `device_name`, `precision`, and `backend` (or method);
- in `provenance.json`: `source_sha256` (in older files: the same revision without local changes), plug-ins except the
  method's own, torch, CUDA, driver, CPU, threads and flags;
- `neighbours` above 0 in both or in none, and `ranks` in all their epochs.

`peak_*` columns are different quantities: never mix two of them in one ratio. The first epoch of a process is `cold`;
compare times over the others.

**Rows of `epochs.csv` alone.** `kind`, `synthetic`, `smoke`, `overrides` and `device_name` tell them apart. In files of
earlier versions these columns are missing or empty; look them up in `cells.csv` by `cell_id` and `attempt`.

## How a comparison is formed

1. A cell's time is the median of `train_s` over its warm epochs. Its memory is the largest peak of the same epochs
   (`peak_tensor_bytes`: of all epochs). Its accuracy is that of the last epoch.
2. A pair is one seed of one run, measured with both methods, because a machine is not equally fast on all days. Bytes and
   accuracies do not depend on the day: repetitions of a seed are averaged there, and a pair is a seed.
3. The ratio of times or bytes is the geometric mean of the pairs' ratios. The means beside it are the geometric means of
   the same pairs, so their quotient is the ratio. A difference of accuracy is the mean of the pairs' differences.
4. The interval is Student's t at 95 % over the pairs, for ratios over their logarithms. `peak_tensor_bytes` is exact and
   needs none.

These lines do it for the recipes `digits` and `digits-saccade` (pandas and scipy alone, from the folder above
`results/`). They print the table of `docs/results.md`; a test holds them to it:

```python
{_EXAMPLE}```

## provenance.json

Nothing in it is ever rewritten. It holds

- *at the top*, what the run was started with: command line, versions, git revision with a dirty flag, `source_sha256` of
  the package's own code, CPU, GPU, driver, settings;
- under `commands`, the same for each command that worked on the run, resumed ones included;
- under `cells`, by cell_id, `attempts` and attempt, what that process found:

| key | meaning |
|---|---|
| `command` | which of the commands, from 0 |
| `source_sha256` | of the package's code as this process found it |
| `plugins` | the plug-ins that it loaded, with their versions and `source_sha256` |
| `weights_sha256` | of the weights that training began with |
| `data_sha256` | of the first training batch and all labels |
| `training_samples_sha256` | of samples spread evenly over the training split, before they are augmented |
| `evaluated_samples_sha256` | of samples spread evenly over the validation and test splits that are evaluated |
| `ranks_began_with` | the same digests, and `labels_sha256` of all labels, of each process that shared the cell's batches |
| others | torch, its flags, the kernels that ran, the sensors that were absent and why |

Digests of samples cover 64 MiB of a split in memory, or 32 samples of a split in files. Files of earlier versions lack
them.
"""

_SHARED = (
    ("Columns of a cell", "Most files begin with these columns.", CELL_KEY),
    (
        "Columns of an analysis",
        "The files of `analyze gradients` on gradients go on with these.",
        ANALYSIS_KEY[len(CELL_KEY) :],
    ),
)
"""Heading, sentence and columns with which several files begin, in their order."""


def describe() -> str:
    """The whole page in Markdown."""
    parts = [_INTRODUCTION]
    parts += [f"## {heading}\n\n{sentence}\n\n{_table(columns)}" for heading, sentence, columns in _SHARED]
    parts += ["\n\n".join([f"## `{file}`", *_of_its_own(file)]) for file in FILES]
    return "\n".join(parts)


def _of_its_own(file: str) -> Iterator[str]:
    """The file's columns, but for those that it shares, which are named."""
    columns, shared = FILES[file], []
    for heading, _, key in _SHARED:
        if columns[: len(key)] == key:
            shared.append(f"the [{heading.lower()}](#{heading.lower().replace(' ', '-')})")
            columns = columns[len(key) :]
    if shared:
        yield f"Begins with {' and '.join(shared)}."
    if file == RANKS_FILE:
        figures = ", ".join(f"`{name}`" for name in RANK_FIGURES)
        yield f"Of `{EPOCHS_FILE}` it has, for each process: {figures}."
        columns = tuple(column for column in columns if column.name not in RANK_FIGURES)
    yield _table(columns)


def _table(columns: tuple[Column, ...]) -> str:
    rows = "\n".join(f"| `{c.name}` | {c.type} | {c.meaning} |" for c in columns)
    return f"| column | type | meaning |\n|---|---|---|\n{rows}\n"


if __name__ == "__main__":
    print(describe(), end="")
