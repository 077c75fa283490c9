"""`python -m tests.benchmarks`: measures the rows of the benchmark, prints and saves their ratios."""

import sys
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from sltt_bench import provenance
from sltt_bench.backends.native.graphs import CaptureFailed
from sltt_bench.kinds.training import choose_device
from sltt_bench.measure.gpu_support import UnusableGpu
from sltt_bench.results.schema import BENCH_FILE, SCHEMA_VERSION
from sltt_bench.results.writer import RunFolder

from .measure import CLOCKS, in_one_line
from .rows import ROWS, Finding, Row, Size, rows_for

CUT_OFF = "the command was stopped before this row had ended"


def main(
    rows: Annotated[
        str, typer.Option(help="Names of rows, separated by commas; default: all of the device.")
    ] = "",
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    rounds: Annotated[int, typer.Option(min=2, help="Alternated iterations of each side, for times.")] = 12,
    batch_divisor: Annotated[int, typer.Option(min=1, help="Times: divide the paper's batches by this.")] = 1,
    timesteps: Annotated[int, typer.Option(min=0, help="Times: T; 0 is the paper's.")] = 0,
    clock: Annotated[str, typer.Option(help="Times: wall, or process for CPU time of all threads.")] = "wall",
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0 leaves torch's choice.")] = 0,
    quick: Annotated[bool, typer.Option(help="A toy network: does everything run?")] = False,
    fake: Annotated[
        bool, typer.Option(help="Memory: count on fake tensors, without computing; the same bytes, sooner.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Where the results folder is made.")] = Path("results"),
    list_rows: Annotated[bool, typer.Option("--list", help="Show the rows and stop.")] = False,
) -> None:
    """Every row is measured side by side in this process: same machine, weights, data and precision."""
    console = Console()
    if list_rows:
        for row in ROWS:
            console.print(f"{row.name:32} {row.on:5} {row.says}")
        return
    chosen = _chosen(rows, device)
    if clock not in CLOCKS:
        raise typer.BadParameter(f"{clock!r}; choose {' or '.join(CLOCKS)}", param_hint="--clock")
    if fake and device != "cpu":
        raise typer.BadParameter("fake tensors are on the CPU; leave --device out", param_hint="--fake")
    if clock == "process" and device.startswith("cuda"):
        raise typer.BadParameter(
            "counts the CPU's time, which is not a GPU's; use --clock wall", param_hint="--clock"
        )
    if device.startswith("cuda"):
        device = _made_current(device)
    if threads:
        torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = True  # so that every competitor has its fastest convolutions
    size = Size(device, rounds, clock, batch_divisor, timesteps or None, quick, fake)
    folder = RunFolder.create(out, "bench")
    try:
        failed = _measure(chosen, size, folder, console)
    finally:
        folder.close()
    console.print(f"{folder.path}", soft_wrap=True)
    raise typer.Exit(1 if failed else 0)


def _chosen(names: str, device: str) -> list[Row]:
    if not names:
        return rows_for(device)
    known = {row.name: row for row in ROWS}
    wanted = [name.strip() for name in names.split(",")]
    if unknown := [name for name in wanted if name not in known]:
        raise typer.BadParameter(
            f"no row {', '.join(unknown)}; known: {', '.join(known)}", param_hint="--rows"
        )
    return [known[name] for name in wanted]


def _made_current(device: str) -> str:
    """Returns the GPU with its number, and makes it torch's current one, for all new streams and captures."""
    try:
        return str(choose_device(device))
    except UnusableGpu as error:
        raise typer.BadParameter(str(error)) from None


def _measure(rows: list[Row], size: Size, folder: RunFolder, console: Console) -> bool:
    """Measure, print and write row by row; returns whether any failed.

    The folder says at any time which rows it lacks.
    """
    facts = provenance.collect(["python", "-m", "tests.benchmarks", *sys.argv[1:]])
    facts |= {"kind": "bench", "size": asdict(size), "ran": size.ran}
    facts["failed"] = {row.name: CUT_OFF for row in rows}
    del facts["size"]["ran"]
    device_name = provenance.device_name(torch.device(size.device))
    folder.write_provenance(facts | provenance.collect_worker({}))
    for number, row in enumerate(rows, start=1):
        console.print(f"{row.name}: {row.says}")
        try:
            for finding in row.measure(size):
                if size.quick:
                    finding = replace(finding, target=None)
                folder.append(BENCH_FILE, _as_row(finding, device_name))
                console.print("  " + _line(finding), soft_wrap=True, highlight=False)
            facts["failed"].pop(row.name, None)
        except Exception as error:
            facts["failed"][row.name] = in_one_line(error)
            console.print(f"[red]{row.name}: {facts['failed'][row.name]}[/red]")
            if isinstance(error, CaptureFailed):
                reason = f"not begun in this process: the capture of a graph broke off in {row.name}"
                facts["failed"] |= {left.name: reason for left in rows[number:]}
                break
        finally:
            folder.write_provenance(facts | provenance.collect_worker({}))
    return bool(facts["failed"])


def _as_row(finding: Finding, device_name: str) -> dict[str, object]:
    return {
        "schema_version": SCHEMA_VERSION,
        **asdict(finding),
        "device_name": device_name,
        "met": finding.met,
        "finished_utc": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _line(finding: Finding) -> str:
    verdict = {None: "", True: "[green]met[/green]", False: "[red]not met[/red]"}[finding.met]
    wanted = "" if finding.target is None else f", wanted ≤ {finding.target}"
    spread = ""
    if finding.ratio_low is not None:
        spread = f" (half of the rounds within {finding.ratio_low:.3f} to {finding.ratio_high:.3f})"
    return (
        f"[bold]{finding.ratio:.3f}[/bold]{spread}{wanted} {verdict}\n"
        f"    {finding.subject}: {_readable(finding.subject_value, finding.quantity)}"
        f"  against  {finding.baseline}: {_readable(finding.baseline_value, finding.quantity)}\n"
        f"    {finding.problem}"
    )


def _readable(value: float, quantity: str) -> str:
    return f"{value / 2**20:.1f} MiB" if quantity == "peak_tensor_bytes" else f"{value * 1e3:.2f} ms"


if __name__ == "__main__":
    typer.run(main)
