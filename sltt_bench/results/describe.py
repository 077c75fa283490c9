"""Writes the description of the format for readers without this tool: `python -m sltt_bench.results.describe`.

Its output is `results/README.md`; a test keeps the two equal, so that the schema is documented once.
"""

from sltt_bench.results.schema import FILES, SCHEMA_VERSION

_INTRODUCTION = f"""# Results: the format on disk

Schema version {SCHEMA_VERSION}. This page is made from the schema itself
(`python -m sltt_bench.results.describe > results/README.md`), so it cannot fall behind it.

Every run has a folder of its own, `<recipe>/<run>/`, where `<run>` is the time of its start (UTC) and
four random digits. Files are only ever appended to, a row at a time, and flushed to disk before the
next; what is replaced as a whole (JSON, checkpoints) is written beside the old file first.

| file | content |
|---|---|
| `recipe.yaml` | the recipe as resolved: `extends` followed, defaults filled in, overrides of the first grid point applied |
| `provenance.json` | what the run was started with: command line, versions, git revision with a dirty flag, CPU, GPU, driver, settings; under `commands` the same of each command that worked on it, resumed ones included; under `cells`, cell_id, `attempts`, attempt: which of the commands (`command`, from 0), torch, its flags, the kernels that ran, the sensors that were absent and why. What is there is never rewritten |
| `cells/<cell_id>.json` | one resolved cell: all that its process was told |
| `cells.csv` | one row for each attempt at a cell, written when it ended, however it ended |
| `epochs.csv` | one row for each finished epoch |
| `timeline.csv` | samples of the GPU over time (only where there is one) |
| `gradients.csv` | `analyze gradients`: full gradient and spatial part, by network, layer and parameter |
| `draws.csv` | `analyze gradients`: how SLTT-K's random gradient relates to SLTT's, for each K |
| `operations.csv` | `analyze gradients`: counted multiplications of each method |
| `estimates.csv` | `estimate`: memory by cause, multiplications and limits of each cell, computed and not measured |
| `bench.csv` | `python -m sltt_bench.bench`: the native backend beside the strongest baselines |
| `logs/<cell_id>-<attempt>.log` | what the cell's process printed (only where it printed anything) |
| `checkpoints/<cell_id>.pt` | while a cell is unfinished, or where a later stage starts from it; not kept in git |
| `*.torn` | an unfinished last line that a crash left, set aside by the run that resumed |

Rules for a reader:

- An empty cell means "not measured" (the reason is in `provenance.json`); it never means 0.
- A last line without a line break is torn: ignore it.
- Of two rows of `epochs.csv` with the same `cell_id` and `epoch`, the later `attempt` counts; of two
  rows of `cells.csv` with the same `cell_id`, likewise. (With a checkpoint after each epoch, as recipes have it,
  there are no two: a resumed cell goes on after the last epoch that has a row.)
- Compare only what is comparable: the same `recipe_hash`, `device_name`, `precision` and `backend`;
  different methods, or different backends for one method, never both at once.
- `peak_*` columns are different quantities. Never mix two of them in one ratio.
- The first epoch of a process is `cold`; times are compared over the others.
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
