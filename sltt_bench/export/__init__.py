"""Exports a trained cell of a run to other tools: `sltt-bench export RUN --method sltt --format nir`.

A format is an entry of `FORMATS` and a module that makes the file's content. Heavy imports wait until then,
and an existing file stays as it is until the new one is complete.
"""

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sltt_bench.common.errors import UserError, nearest
from sltt_bench.common.extras import load_extra

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from sltt_bench.planning.recipe_fields import Recipe
    from sltt_bench.results.reader import Run


class ExportError(UserError):
    """The cell cannot be written in this format, or no such cell exists; the message says why."""


@dataclass(frozen=True)
class TrainedCell:
    """The cell that is exported."""

    run: "Run"
    row: Mapping[str, Any]
    """Its row of cells.csv."""
    epochs: "pd.DataFrame"
    """Its rows of epochs.csv, the last epoch last."""
    name: str
    """Its method, with seed and id if they are needed to tell it from other cells of the run."""

    @property
    def recipe(self) -> "Recipe":
        """The recipe as resolved for this cell. Raises RecipeError."""
        from sltt_bench.planning.recipe import recipe_from_dict

        return recipe_from_dict(self.run.recipe_of(self.row["cell_id"]))

    def network(self) -> "nn.Module":
        """The network with its trained weights, for evaluation. Raises ExportError if no checkpoint was kept."""
        from sltt_bench.backends.reference import Reference
        from sltt_bench.results import checkpoints
        from sltt_bench.results.schema import CHECKPOINTS_FOLDER
        from sltt_bench.training.experiment import build_network

        if self.row["status"] != "ok":  # its checkpoint is then of an unfinished training
            raise ExportError(
                f"the cell ended with {self.row['status']} ({self.row['reason']}); --resume finishes it"
            )
        path = self.run.path / CHECKPOINTS_FOLDER / f"{self.row['cell_id']}.pt"
        if not path.exists():
            raise ExportError(
                f"{path}: no such checkpoint; run with --set train.keep_checkpoint=true to keep it"
            )
        network = build_network(self.recipe, Reference(), converted=_converts(str(self.row["method"])))
        try:
            state = checkpoints.load(path, of_cell=path.stem)
            with checkpoints.restoring(path):
                network.load_state_dict(state["model"])
        except checkpoints.CheckpointError as error:
            raise ExportError(str(error)) from None
        return network.eval()


def _converts(method: str) -> bool:
    """Whether networks trained with the method hold the thresholds of converted neurons.

    False for a plug-in's method that is no longer installed.
    """
    from sltt_bench import methods

    try:
        return "conversion" in methods.promises(method).needs
    except methods.UnknownMethod:
        return False


@dataclass(frozen=True)
class Benchmark:
    """What a published result refers to."""

    dataset_id: str
    """`owner/name` of a data set on the Hugging Face Hub."""
    task_id: str = "default"
    """One of the tasks that the data set's eval.yaml names."""
    source_url: str | None = None
    """Where the evidence for the result is: the run's files, a paper."""


def export(
    run: Path,
    method: str,
    seed: int | None,
    format_name: str,
    out: Path | None = None,
    benchmark: Benchmark | None = None,
    cell_id: str | None = None,
) -> Path:
    """Write one cell of a run in a format of `FORMATS`; returns the file. Raises ExportError, ResultsError.

    If `out` is None, the file is named after the cell; an existing one is not overwritten, since it may be of
    another run.
    """
    default, content_of = FORMATS[format_name]
    trained = trained_cell(run, method, seed, cell_id)
    path = out or Path(default.format(name=trained.name))
    if out is None and path.exists():
        raise ExportError(f"{path}: exists; name another file with --out, or remove it first")
    _write(path, content_of(trained, benchmark))
    return path


def _write(path: Path, content: bytes) -> None:
    """Write a file; if that fails, an existing one stays. Raises ExportError, ResultsError."""
    from sltt_bench.results.writer import atomic_result

    try:
        if path.is_file() or not path.exists():
            target = path.resolve()  # a link stays one
            target.parent.mkdir(parents=True, exist_ok=True)
            with atomic_result(target) as file:
                file.write(content)
        else:  # a pipe or device, which no new file may replace
            path.write_bytes(content)
    except OSError as error:
        raise ExportError(f"{path}: cannot be written ({error.strerror or error})") from None


def trained_cell(run: Path, method: str, seed: int | None, cell_id: str | None = None) -> TrainedCell:
    """Returns the one cell with this method, seed and id (None: any); prints what of the run is not read. Raises
    ExportError, ResultsError."""
    from sltt_bench.common.printable import make_console
    from sltt_bench.results.reader import print_unread, read_results

    results = read_results([run])
    print_unread(results.skipped, make_console(stderr=True))
    cells = of_method = results.cells[(results.cells["kind"] == "run") & (results.cells["method"] == method)]
    asked = f"the method {method}"
    for name, column, value in (("seed", "seed", seed), ("id", "cell_id", cell_id)):
        if value is not None:
            cells, asked = cells[cells[column] == value], f"{asked} and {name} {value}"
    if of_method.empty:
        asked += nearest(method, results.cells["method"].unique())
    if len(cells) != 1:
        raise ExportError(f"{run}: {len(cells)} cells have {asked}; {_one_of(cells, of_method)}")
    row = {str(column): value for column, value in cells.iloc[0].items()}
    folder = results.runs[row["run"]]
    epochs = results.epochs[(results.epochs["run"] == row["run"])]
    epochs = epochs[epochs["cell_id"] == row["cell_id"]].sort_values("epoch")
    return TrainedCell(folder, row, epochs, _name(row, of_method[of_method["run"] == row["run"]]))


def _name(row: Mapping[str, Any], siblings: "pd.DataFrame") -> str:
    """Returns the cell's name; `siblings` are all cells of its method in its run."""
    seeds = siblings["seed"].astype(int)
    of_seed = seeds == int(row["seed"])
    words = [str(row["method"])]
    words += [f"seed{int(row['seed'])}"] * (seeds.nunique() > 1)
    words += [str(row["cell_id"])] * int(of_seed.sum() > 1)
    return "-".join(words)


def _one_of(cells: "pd.DataFrame", of_method: "pd.DataFrame") -> str:
    """Returns a hint on how to name one of these cells, or if there are none one of their method."""
    cells = of_method if cells.empty else cells
    if cells.empty:
        return "`sltt-bench show RUN` names those that there are"
    if cells["run"].nunique() > 1:
        return f"they are in {cells['run'].nunique()} runs: give the folder of one, RECIPE/RUN"
    facts = cells.astype({"seed": int})[["cell_id", "seed", "backend", "overrides"]].fillna("").astype(str)
    words = (
        f"{cell_id} (seed {', '.join(filter(None, further))})"
        for cell_id, *further in facts.itertuples(index=False)
    )
    return f"name one by --seed or --cell: {'; '.join(words)}"


def _nir(trained: TrainedCell, benchmark: Benchmark | None) -> bytes:
    nir = load_extra("nir", "nir", "--format nir", ExportError)
    from sltt_bench.export.nir_graph import nir_graph

    content = io.BytesIO()
    nir.write(content, nir_graph(trained.network(), trained.recipe.data.sample_shape))
    return content.getvalue()


def _onnx(trained: TrainedCell, benchmark: Benchmark | None) -> bytes:
    from sltt_bench.export.onnx_model import onnx_model

    return onnx_model(trained.network(), trained.recipe)


def _state_dict(trained: TrainedCell, benchmark: Benchmark | None) -> bytes:
    import torch

    content = io.BytesIO()
    torch.save(trained.network().state_dict(), content)
    return content.getvalue()


def _eval_results(trained: TrainedCell, benchmark: Benchmark | None) -> bytes:
    from sltt_bench.common.yaml_text import dump_yaml
    from sltt_bench.export.eval_results import entry

    return dump_yaml([entry(trained, benchmark)]).encode()


FORMATS: Mapping[str, tuple[str, Callable[[TrainedCell, Benchmark | None], bytes]]] = {
    "nir": ("{name}.nir", _nir),
    "onnx": ("{name}.onnx", _onnx),
    "state-dict": ("{name}.pt", _state_dict),
    "eval-results": (".eval_results/{name}.yaml", _eval_results),
}
"""Format → (default name of the file, function that returns its content and raises ExportError)."""
