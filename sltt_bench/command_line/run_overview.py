"""Summarises one run: its commands, what it ran on, how each cell ended, and its files."""

from collections import Counter
from pathlib import Path
from typing import Any

from sltt_bench.results.reader import Results, read_results
from sltt_bench.results.schema import PROVENANCE_FILE, RECIPE_FILE
from sltt_bench.results.writer import ResultsError


def overview(folder: Path) -> dict[str, Any]:
    """Returns the facts of the run in `folder` as JSON. Raises ResultsError if it holds no run or several."""
    results = read_results([folder])
    if len(results.runs) != 1:
        where = "no run is" if not results.runs else f"{len(results.runs)} runs are"
        raise ResultsError(
            f"{folder}: {where} in this folder{results.reasons}; show one run, as results/RECIPE/RUN. "
            f"`sltt-bench report {folder}` compares many"
        )
    run = results.runs[0]
    facts = run.provenance
    commands = facts.get("commands") or [facts]
    return {
        "run": str(run.path),
        "commands": [" ".join(map(str, entry.get("command") or [])) for entry in commands],
        "started_utc": facts.get("started_utc"),
        "sltt_bench": facts.get("sltt_bench"),
        "git_revision": facts.get("git_revision"),
        "git_dirty": facts.get("git_dirty"),
        "source_sha256": facts.get("source_sha256"),
        "torch": (facts.get("packages") or {}).get("torch"),
        "devices": sorted({str(name) for name in results.cells["device_name"].dropna()}),
        "cells": _cells(results),
        "cells_planned": len(facts.get("plan") or results.cells),
        "files": sorted(str(path.relative_to(run.path)) for path in run.path.glob("[!.]*") if path.is_file()),
        "unread": [f"{skipped.path}: {skipped.reason}" for skipped in results.skipped],
    }


def lines(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns the facts as (subject, text) for a terminal."""
    revision = facts["git_revision"]
    code = f"sltt-bench {facts['sltt_bench'] or 'unknown'}"
    if revision:
        code += f", revision {revision[:12]}{' with changes' if facts['git_dirty'] else ''}"
    if facts["source_sha256"]:
        code += f", source {facts['source_sha256'][:12]}"
    counts = Counter(cell["status"] for cell in facts["cells"])
    ended = ", ".join(f"{count} {status}" for status, count in counts.items())
    missing = facts["cells_planned"] - len(facts["cells"])
    failed = [cell for cell in facts["cells"] if cell["status"] != "ok"]
    files = f"(the recipe is {RECIPE_FILE}, the versions {PROVENANCE_FILE})"
    return [
        ("run", facts["run"]),
        *(("command", command) for command in facts["commands"]),
        ("started", facts["started_utc"] or "unknown: provenance.json does not say"),
        ("code", f"{code}, torch {facts['torch'] or 'unknown'}"),
        *(("device", device) for device in facts["devices"]),
        ("cells", ended + (f"; {missing} of {facts['cells_planned']} have not ended" if missing > 0 else "")),
        *((cell["status"], f"{cell['method']}, seed {cell['seed']}: {cell['reason']}") for cell in failed),
        ("files", f"{', '.join(facts['files'])} {files}"),
        *(("not read", text) for text in facts["unread"]),
    ]


def _cells(results: Results) -> list[dict[Any, Any]]:
    columns = ["cell_id", "kind", "method", "backend", "seed", "overrides", "status", "reason", "wall_s"]
    rows = results.cells[columns].astype({"seed": "Int64"}).astype(object)
    return rows.where(rows.notna(), None).to_dict("records")
