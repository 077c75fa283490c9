"""The arguments and options that several verbs share, and how a shell completes what is typed there."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from pkgutil import resolve_name
from typing import Annotated

import typer

# Completion -------------------------------------------------------------------------------------


def _complete(incomplete: str, names: Iterable[str]) -> list[str]:
    """Completes the last of a comma list."""
    done, comma, last = incomplete.rpartition(",")
    return [f"{done}{comma}{name}" for name in dict.fromkeys(names) if name.startswith(last)]


def complete_recipe(incomplete: str) -> list[str]:
    """Recipes are arguments of their own, and no comma list."""
    from sltt_bench.planning.recipe_files import recipe_names, study_names

    return [name for name in (*recipe_names(), *study_names()) if name.startswith(incomplete)]


def complete_methods(incomplete: str) -> list[str]:
    """A name with a number in it as far as the number. Loads no plug-in, which might take longer than typing the rest."""
    from sltt_bench import methods
    from sltt_bench.common.plugins import plugins

    built_in = [re.split("[NX]", entry.label)[0] for entry in methods.METHODS.values()]
    of_others = [re.split(r"[(\[\\]", plugin.name)[0] for plugin in plugins("methods")]
    return _complete(incomplete, filter(None, [*built_in, *of_others]))


def complete_shown(incomplete: str) -> list[str]:
    """What `show` takes, but for folders."""
    return [*complete_recipe(incomplete), *complete_methods(incomplete)]


def completing(registry: str) -> Callable[[str], list[str]]:
    """Completes the last of a comma list of names. `registry`, "module:names", is loaded only then."""

    def complete(incomplete: str) -> list[str]:
        names = resolve_name(registry)
        return _complete(incomplete, names() if callable(names) else names)

    return complete


# Recipes and what is run of them ----------------------------------------------------------------

RecipeName = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A recipe's name or file.", autocompletion=complete_recipe)
]
RecipeNames = Annotated[
    list[str],
    typer.Argument(
        metavar="RECIPE",
        help="Recipes by name or file, with spaces between them.",
        autocompletion=complete_recipe,
    ),
]
Methods = Annotated[
    str | None,
    typer.Option("--method", "-m", help="Comma list, e.g. bptt,sltt,sltt-k4. Default: the recipe's.",
                 autocompletion=complete_methods),
]  # fmt: skip
Backends = Annotated[
    str,
    typer.Option(
        help="Comma list: reference, native, spikingjelly, or your own.",
        autocompletion=completing("sltt_bench.backends:names"),
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="key=value for one recipe field; key=1,2,4 makes a grid. Repeatable."),
]
DataDir = Annotated[
    Path, typer.Option(help="Where data sets are.", envvar="SLTT_BENCH_DATA", file_okay=False)
]
Out = Annotated[Path, typer.Option(help="Where results go.", file_okay=False)]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with the last run of the same plan that did not finish.")
]
Smoke = Annotated[bool, typer.Option("--smoke", help="A tiny subset, network and input: seconds on a CPU.")]
Synthetic = Annotated[
    bool, typer.Option("--synthetic", help="Random data of the right shapes: memory and time, no accuracy.")
]
Jobs = Annotated[
    int | None,
    typer.Option(
        "--jobs",
        "-j",
        min=1,
        max=4096,
        help="Cells that run side by side, threads shared among them. Default: 1.",
    ),
]
Devices = Annotated[
    str | None, typer.Option(help="Comma list, e.g. cuda:0,cuda:1: a cell at a time on each, side by side.")
]
Oversubscribe = Annotated[
    bool,
    typer.Option("--oversubscribe", help="Allow more cells at once than there are processors or devices."),
]

Device = Annotated[str, typer.Option(help="auto (a GPU if there is one), cpu, cuda or cuda:N.")]
Seeds = Annotated[str | None, typer.Option(help="Comma list, e.g. 0,1,2. Default: the recipe's.")]
Init = Annotated[str | None, typer.Option(help="Start from this checkpoint, or from `random` weights.")]
Timeout = Annotated[
    str | None, typer.Option(help="Wall-clock limit of one cell, e.g. 90s, 30m, 2h. Default: none.")
]
ProcessesPerCell = Annotated[
    int | None,
    typer.Option(min=1, help="Processes that share each batch of a cell, a device each (train.devices)."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show the plan and stop.")]
Estimates = Annotated[
    bool, typer.Option("--estimate/--no-estimate", help="Estimate each cell's memory before the run.")
]
Baseline = Annotated[
    str | None,
    typer.Option(help="Method that ratios refer to. Default: bptt.", autocompletion=complete_methods),
]
Results = Annotated[list[Path], typer.Argument(metavar="RESULTS", help="Folders with results, at any depth.")]
AsJSON = Annotated[bool, typer.Option("--json", help="As JSON, for scripts.")]
Submitted = Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder that `submit` made.")]
DatasetName = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help="A data set's name.", autocompletion=completing("sltt_bench.data:names")
    ),
]
Split = Annotated[
    str | None, typer.Option(help="One of its splits, where there are several (dvs-gesture, ssc).")
]
DataOverrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="data.field=value as in a recipe, where your data lie elsewhere: data.folder=pictures."
    ),
]
