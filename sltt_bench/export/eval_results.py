"""Writes a network's accuracy for Hugging Face's model repositories, as an entry of `.eval_results/*.yaml`.

Format: huggingface.co/docs/hub/eval-results. The data set must be one that the Hub knows as a benchmark. The
publisher names the one that matches the recipe's data, since splits of the same name may differ.
"""

import math
from typing import Any

from sltt_bench import __version__
from sltt_bench.common.format import counted
from sltt_bench.export import Benchmark, ExportError, TrainedCell


def entry(trained: TrainedCell, benchmark: Benchmark | None) -> dict[str, Any]:
    """Returns the entry of a finished cell. Raises ExportError.

    Its accuracy is that after the last epoch, since the exported weights are of that epoch.
    """
    row = trained.row
    if benchmark is None:
        raise ExportError("eval-results needs --dataset-id OWNER/NAME: the benchmark's data set on the Hub")
    if row["smoke"] or row["synthetic"]:
        flag = "--smoke" if row["smoke"] else "--synthetic"
        raise ExportError(f"a {flag} run says nothing of accuracy: there is no result to publish")
    if row["status"] != "ok":
        raise ExportError(f"the cell ended with {row['status']} ({row['reason']}); --resume finishes it")
    last = trained.epochs.iloc[-1]
    if math.isnan(last["test_top1"]):
        raise ExportError("the last epoch has no test accuracy")
    dataset = {"id": benchmark.dataset_id, "task_id": benchmark.task_id}
    source = {} if benchmark.source_url is None else {"source": {"url": benchmark.source_url}}
    return {
        "dataset": dataset,
        "value": round(100 * float(last["test_top1"]), 4),
        "date": str(last["finished_utc"])[:10],
        **source,
        "notes": _notes(trained, int(last["epoch"])),
    }


def _notes(trained: TrainedCell, epoch: int) -> str:
    row, facts = trained.row, trained.run.provenance
    code = f"sltt-bench {facts.get('sltt_bench') or __version__}"
    if revision := facts.get("git_revision"):
        code += f" at {revision[:12]}{' with local changes' if facts.get('git_dirty') else ''}"
    changed = "" if row["overrides"] in ("", "{}") else f" with {row['overrides']}"
    return (
        f"top-1 accuracy on the test set in percent after the last of {counted(epoch, 'epoch')}; recipe {row['recipe']}{changed}, "
        f"training method {row['method']}, T = {int(row['timesteps'])}, seed {int(row['seed'])}; {code}"
    )
