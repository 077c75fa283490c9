"""The command line: verbs, exit codes and what is said when something is wrong.

Nothing heavy is imported here: torch never in this process, the rest inside the verb that needs it.
"""

import math
import os
import re
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TextIO, cast

import typer

from sltt_bench import __version__
from sltt_bench.command_line.option_values import (
    comma_list,
    fields_set,
    make_request,
    parse_counts,
    parse_device,
    parse_effects,
    parse_seconds,
    processes_field,
    sbatch_options,
    where_to_run,
)
from sltt_bench.command_line.options import (
    AsJSON,
    Backends,
    Baseline,
    DataDir,
    DataOverrides,
    DatasetName,
    Device,
    Devices,
    DryRun,
    Estimates,
    Init,
    Jobs,
    Methods,
    Out,
    Overrides,
    Oversubscribe,
    ProcessesPerCell,
    RecipeName,
    RecipeNames,
    Results,
    Resume,
    Seeds,
    Smoke,
    Split,
    Submitted,
    Synthetic,
    Timeout,
    complete_methods,
    complete_recipe,
    complete_shown,
    completing,
)
from sltt_bench.command_line.usage import VerbsGivenOnce
from sltt_bench.common.errors import UserError, nearest
from sltt_bench.common.lasting_output import LastingOutput, open_closed_streams
from sltt_bench.common.printable import make_console, print_what_the_terminal_lacks_in_ascii, printable
from sltt_bench.running.interruptions import Interrupted

if TYPE_CHECKING:
    from sltt_bench.planning.plan import Plan


class _State:
    debug = False


class _Verbs(VerbsGivenOnce):
    """What a user can mend becomes a message and exit code 2; --debug shows where it came from."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            if _State.debug:
                raise
            _fail(str(error).replace("\n", "\nerror: "))
        except Interrupted as interruption:
            _print_error(f"interrupted by {interruption}; nothing was begun")
            raise typer.Exit(128 + interruption.signal_number) from None


app = typer.Typer(
    cls=_Verbs,
    help="Benchmark and reproduce training methods for spiking neural networks: BPTT, SLTT, SLTT-K.",
    epilog="To begin, without data or GPU: sltt-bench run digits --method bptt,sltt, then sltt-bench report results",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

CELL_FAILED, WRONG_USAGE = 1, 2


class _DataVerbs(VerbsGivenOnce):
    settable = ("data",)


data_app = typer.Typer(
    cls=_DataVerbs, help="Get data sets onto the disk, and check them.", no_args_is_help=True
)
app.add_typer(data_app, name="data")
analyze_app = typer.Typer(cls=VerbsGivenOnce, help="Look into what a method does.", no_args_is_help=True)
app.add_typer(analyze_app, name="analyze")
submission_app = typer.Typer(cls=VerbsGivenOnce, help="Results for the shared table.", no_args_is_help=True)
app.add_typer(submission_app, name="submission")


# Verbs ------------------------------------------------------------------------------------------


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"sltt-bench {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and stop."),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
) -> None:
    _State.debug = debug or _State.debug


@app.command()
def run(
    recipes: RecipeNames,
    method: Methods = None,
    seed: Seeds = None,
    overrides: Overrides = None,
    smoke: Smoke = False,
    synthetic: Synthetic = False,
    data_dir: DataDir = Path("data"),
    device: Device = "auto",
    jobs: Jobs = None,
    devices: Devices = None,
    nproc_per_cell: ProcessesPerCell = None,
    oversubscribe: Oversubscribe = False,
    backend: Backends = "reference",
    init: Init = None,
    out: Out = Path("results"),
    resume: Resume = False,
    timeout: Timeout = None,
    log: Annotated[
        str | None,
        typer.Option(
            help="Log there too, under the names of the CSV columns: tensorboard, wandb, mlflow, mlperf (comma list).",
            autocompletion=completing("sltt_bench.running.loggers:LOGGERS"),
        ),
    ] = None,
    estimates: Estimates = True,
    skip_oversize: Annotated[
        bool, typer.Option("--skip-oversize", help="Leave out cells that cannot fit, instead of warning.")
    ] = False,
    dry_run: DryRun = False,
) -> None:
    """Train and measure: every combination in a process of its own, a CSV row for every epoch."""
    from sltt_bench.planning.checkpoint_file import checkpoint_file
    from sltt_bench.planning.plan import on_device, plans_of_all
    from sltt_bench.running.loggers import LOGGERS

    if init is not None and init != "random":
        checkpoint_file(init)
    if skip_oversize and not estimates:
        _fail("--skip-oversize needs the estimate; leave --no-estimate out")
    logs = comma_list("--log", log) or []
    if unknown := [name for name in logs if name not in LOGGERS]:
        _fail(f"--log {unknown[0]}: known are {', '.join(LOGGERS)}{nearest(unknown[0], LOGGERS)}")
    grid = [*fields_set(overrides), *processes_field(nproc_per_cell)]
    request = make_request(
        method, backend, seed, grid, device, smoke=smoke, synthetic=synthetic, init=init, data_dir=data_dir
    )
    plans = plans_of_all(recipes, request)
    places = where_to_run(device, jobs, devices, plans, crowd=oversubscribe or dry_run)
    plans = on_device(plans, places[0].device)
    code = _carry_out(
        plans,
        dry_run,
        timeout,
        out=out,
        data_dir=data_dir,
        resume=resume,
        places=places,
        logs=logs,
        estimates=estimates,
        skip_oversize=skip_oversize,
    )
    raise typer.Exit(code)


@app.command()
def tune(
    recipe: RecipeName,
    method: Methods = None,
    seed: Annotated[
        str | None,
        typer.Option(
            help="Comma list of seeds of the final training, none of them a trial's. Default: the recipe's."
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="key=value for one recipe field, in trials and final training. Repeatable."
        ),
    ] = None,
    smoke: Smoke = False,
    data_dir: DataDir = Path("data"),
    device: Device = "auto",
    jobs: Jobs = None,
    devices: Devices = None,
    nproc_per_cell: ProcessesPerCell = None,
    oversubscribe: Oversubscribe = False,
    backend: Annotated[
        str,
        typer.Option(
            help="reference, native, spikingjelly, or your own.",
            autocompletion=completing("sltt_bench.backends:names"),
        ),
    ] = "reference",
    out: Out = Path("results"),
    resume: Resume = False,
    timeout: Timeout = None,
    estimates: Estimates = True,
    dry_run: DryRun = False,
) -> None:
    """Choose settings for each method on validation data, with an equal budget, and train with what was chosen."""
    from sltt_bench.tuning.plan import FinalTraining, plan_tuning

    grid = [*fields_set(overrides), *processes_field(nproc_per_cell)]
    request = make_request(method, backend, seed, grid, device, smoke=smoke, data_dir=data_dir)
    places = where_to_run(device, jobs, devices, plan_tuning(recipe, request), crowd=oversubscribe or dry_run)
    # The final training is planned later, from the request.
    plans = plan_tuning(recipe, replace(request, device=places[0].device or request.device))
    code = _carry_out(
        plans, dry_run, timeout, out=out, data_dir=data_dir, resume=resume, places=places, estimates=estimates
    )
    final = plans[-1].then
    if isinstance(final, FinalTraining) and final.unchosen:
        code = code or CELL_FAILED
    raise typer.Exit(code)


@app.command()
def submit(
    recipes: RecipeNames,
    method: Methods = None,
    seed: Seeds = None,
    overrides: Overrides = None,
    smoke: Smoke = False,
    synthetic: Synthetic = False,
    data_dir: DataDir = Path("data"),
    device: Device = "auto",
    nproc_per_cell: ProcessesPerCell = None,
    backend: Backends = "reference",
    init: Init = None,
    out: Out = Path("results"),
    resume: Annotated[
        bool, typer.Option("--resume", help="Complete the last submission of the same cells, in its folder.")
    ] = False,
    timeout: Timeout = None,
    time: Annotated[
        str, typer.Option(help="Time of a job, e.g. 30m, 24h; before it ends, the job is requeued.")
    ] = "24h",
    partition: Annotated[str | None, typer.Option("--partition", "-p", help="Slurm's partition.")] = None,
    nodes: Annotated[
        int, typer.Option(min=1, help="Nodes of a job: a cell's processes, divided evenly over them.")
    ] = 1,
    gpus_per_node: Annotated[
        int | None, typer.Option(min=1, help="GPUs of a job on a node. Default: one for each process.")
    ] = None,
    cpus_per_task: Annotated[int | None, typer.Option(min=1, help="Cores of a job.")] = None,
    mem: Annotated[float | None, typer.Option(min=0.1, help="Memory of a job in GB.")] = None,
    array_parallelism: Annotated[int, typer.Option(min=1, help="Jobs that run at once.")] = 256,
    requeues: Annotated[
        int, typer.Option(min=0, help="How often a cell may run out of its time and go on.")
    ] = 20,
    slurm: Annotated[
        list[str] | None,
        typer.Option(help="A further option of sbatch: account=NAME, exclusive. Repeatable."),
    ] = None,
) -> None:
    """Do what `run` does on a Slurm cluster: one job array, a job for each cell, all results in one folder."""
    from sltt_bench.command_line import commands, verbs
    from sltt_bench.command_line.slurm import Resources, Submission
    from sltt_bench.command_line.slurm import submit as hand_over
    from sltt_bench.planning.checkpoint_file import checkpoint_file
    from sltt_bench.planning.plan import plans_of_all, processes_per_cell

    if init is not None and init != "random":
        init = str(checkpoint_file(init).absolute())
    grid = [*fields_set(overrides), *processes_field(nproc_per_cell)]
    request = make_request(
        method, backend, seed, grid, device, smoke=smoke, synthetic=synthetic, init=init, data_dir=data_dir
    )
    plans = commands.without_refused(plans_of_all(recipes, request), here=False)
    several = processes_per_cell(plans)
    if several % nodes:
        _fail(
            f"--nodes {nodes}: the {several} processes of a cell (--nproc-per-cell) cannot be divided evenly"
        )
    resources = Resources(
        time=math.ceil((parse_seconds(time, "--time") or 0) / 60),
        partition=partition,
        nodes=nodes,
        gpus_per_node=gpus_per_node or (several // nodes if several > 1 and device != "cpu" else None),
        cpus_per_task=cpus_per_task,
        mem=mem,
        array_parallelism=array_parallelism,
        requeues=requeues,
        further=sbatch_options(slurm or ()),
    )
    timeout_s, command = parse_seconds(timeout), commands.command_line()
    cells = [cell for plan in plans for cell in plan]
    commands.check_batches(cells)
    commands.check_data(cells, data_dir)
    for plan in plans:
        commands.show_remarks(plan)
    if resume and Submission.newest_of(out, cells) is None:
        commands.remark("--resume: no earlier submission has these cells; a new one starts")
    submission = hand_over(
        plans, resources, out=out, data_dir=data_dir, command=command, timeout_s=timeout_s, resume=resume
    )
    verbs.show_status(submission.folder)


@app.command()
def status(folder: Submitted, as_json: AsJSON = False) -> None:
    """Say how the cells of a submission stand, with the scheduler's reason; exit code 1 if some failed."""
    from sltt_bench.command_line import verbs

    raise typer.Exit(verbs.show_status(folder, as_json=as_json))


@app.command()
def cancel(
    folder: Submitted,
    cell: Annotated[
        str | None, typer.Option(help="Comma list of cells, as `status` names them. Default: all.")
    ] = None,
) -> None:
    """End the jobs of a submission that wait or run; what was measured stays."""
    from sltt_bench.command_line import verbs

    verbs.cancel(folder, comma_list("--cell", cell))


@app.command()
def report(
    results: Results,
    out: Annotated[
        Path | None,
        typer.Option(help="Where the report goes. Default: `report` in the first folder.", file_okay=False),
    ] = None,
    baseline: Baseline = None,
    formats: Annotated[
        str,
        typer.Option(
            "--format",
            help="Comma list: terminal, csv, svg, svg-column, png, png-column, markdown, html, latex, json.",
        ),
    ] = "terminal,csv,svg,markdown,html",
    check: Annotated[bool, typer.Option("--check", help="Exit code 1 if a claim does not hold.")] = False,
    full: Annotated[bool, typer.Option("--full", help="Print every table, not only the answer.")] = False,
) -> None:
    """Compare: tables, plots and a verdict on each claim, from any pile of result folders."""
    from sltt_bench.report import make_report

    missing = [path for path in results if not path.exists()]
    if missing:
        _fail(f"{missing[0]}: no such folder; `sltt-bench run RECIPE` makes results")
    named = comma_list("--format", formats) or []
    if full and "terminal" not in named:
        _fail(f"--full is about what is printed, but --format {formats} prints nothing; add terminal")
    outcome = make_report(results, out, baseline, named, full=full, console=make_console())
    if check and not outcome.claims_hold:
        raise typer.Exit(CELL_FAILED)


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="Results before.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Results after.")],
    threshold: Annotated[float, typer.Option(help="Relative change that counts as a regression.")] = 0.05,
) -> None:
    """Set two result sets side by side; exit code 1 if B regresses beyond the threshold."""
    from sltt_bench.report.compare import compare_sets

    if not 0 <= threshold < math.inf:
        _fail(f"--threshold {threshold:g}: wants a relative change from 0 on, e.g. 0.05")
    for path in (a, b):
        if not path.exists():
            _fail(f"{path}: no such folder; `sltt-bench run RECIPE` makes results")
    comparison = compare_sets(a, b, threshold)
    if comparison.regressions:
        raise typer.Exit(CELL_FAILED)


@app.command()
def power(
    results: Results,
    effect: Annotated[
        str, typer.Option(help="Comma list: points of accuracy, percent of other figures.")
    ] = "0.5,1,2",
    method: Annotated[
        str | None,
        typer.Option("--method", "-m", help="Comma list. Default: all.", autocompletion=complete_methods),
    ] = None,
    baseline: Annotated[str, typer.Option(help="Method that is paired with each.")] = "bptt",
    figure: Annotated[
        str, typer.Option(help="Column of seeds.csv: last_test_top1, epoch_s, energy_j, ...")
    ] = "last_test_top1",
    wanted: Annotated[
        float, typer.Option("--power", min=0.5, max=0.999, help="Probability of seeing the effect.")
    ] = 0.8,
    as_json: AsJSON = False,
) -> None:
    """Say how many seeds would tell a stated effect apart, from the spread of the pairs at hand."""
    from sltt_bench.command_line import verbs
    from sltt_bench.report.power import print_seeds_needed, seeds_needed
    from sltt_bench.results.reader import print_unread, read_results

    methods, effects = comma_list("--method", method), parse_effects(effect)
    measured = read_results(results)
    rows = seeds_needed(
        measured, results, effects, power=wanted, figure=figure, baseline=baseline, methods=methods
    )
    if as_json:
        verbs.print_json([asdict(row) for row in rows])
    else:
        print_seeds_needed(rows, make_console())
    print_unread(measured.skipped, make_console(stderr=True))


@app.command()
def estimate(
    recipes: RecipeNames,
    method: Methods = None,
    timesteps: Annotated[str | None, typer.Option(help="Comma list of T. Default: the recipe's.")] = None,
    batch_size: Annotated[
        str | None, typer.Option(help="Comma list of batch sizes. Default: the recipe's.")
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            help="A GPU's memory, e.g. 24GiB: find the largest batch and T that fit into 90 % of it."
        ),
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option(
            help="A GPU, e.g. rtx-4090: give a lower bound on the time of an epoch from its data sheet."
        ),
    ] = None,
    gpu_file: Annotated[Path | None, typer.Option(help="A YAML file with more GPUs.", dir_okay=False)] = None,
    overrides: Overrides = None,
    smoke: Smoke = False,
    device: Annotated[
        str, typer.Option(help="cuda or cpu: the run that is estimated; neither is needed here.")
    ] = "cuda",
    nproc_per_cell: ProcessesPerCell = None,
    backend: Backends = "reference",
    out: Out = Path("results"),
    resume: Resume = False,
    baseline: Baseline = None,
    as_json: AsJSON = False,
) -> None:
    """Count the memory and compute of a run, exactly, without a GPU and without data."""
    from sltt_bench.command_line import commands
    from sltt_bench.estimate.plan import plan_estimates
    from sltt_bench.planning.plan import plans_of_all
    from sltt_bench.results.schema import ESTIMATES_FILE

    grid = [*fields_set(overrides), *processes_field(nproc_per_cell)]
    grid += parse_counts("--timesteps", "timesteps", timesteps)
    grid += parse_counts("--batch-size", "train.batch_size", batch_size)
    if gpu_file is not None and gpu is None:
        _fail(f"--gpu-file {gpu_file}: adds to the GPUs that --gpu knows; say --gpu NAME too")
    if device not in ("cpu", "cuda"):
        _fail(f"--device {device}: an estimate is for cuda or cpu")
    request = make_request(method, backend, "0", grid, device, smoke=smoke, init="random")
    plans = plan_estimates(
        plans_of_all(recipes, request),
        device_type="cpu" if device == "cpu" else "cuda",
        gpu=gpu,
        gpu_file=gpu_file,
        memory=memory,
    )
    plans = commands.without_refused(plans, here=False)
    planned = list(dict.fromkeys(cell.method for plan in plans for cell in plan))
    if baseline is not None and baseline not in planned:
        known = ", ".join(planned)
        _fail(f"--baseline {baseline}: no such method here{nearest(baseline, planned)}; there are {known}")
    json_rows = ESTIMATES_FILE if as_json else None
    code = commands.run_plans(plans, out=out, resume=resume, baseline=baseline or "bptt", json_rows=json_rows)
    raise typer.Exit(code)


@app.command("list")
def list_(
    what: Annotated[
        str,
        typer.Argument(
            metavar="KIND",
            help="recipes, studies, methods, models, datasets or backends; everything by default.",
        ),
    ] = "all",
    as_json: AsJSON = False,
) -> None:
    """Show the recipes, studies, methods, models, data sets and backends by name."""
    from sltt_bench.command_line import verbs

    verbs.show_list(what, as_json=as_json)


@app.command()
def show(
    what: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE|METHOD|RUN",
            help="A recipe's name or file, a method's name, or the folder of a run.",
            autocompletion=complete_shown,
        ),
    ],
    overrides: Overrides = None,
    smoke: Smoke = False,
    as_json: AsJSON = False,
) -> None:
    """Show a recipe as it resolves, with `extends`, --set and --smoke applied; a method's equations; or a run."""
    from sltt_bench.command_line import verbs
    from sltt_bench.planning.overrides import parse_overrides
    from sltt_bench.planning.recipe import load_recipe

    if Path(what).is_dir():
        if overrides or smoke:
            _fail(f"{what} is the folder of a run: --set and --smoke belong to a recipe")
        verbs.show_run(Path(what), as_json=as_json)
        return
    if verbs.is_method(what):
        if overrides or smoke:
            _fail(f"{what} is a method: --set and --smoke belong to a recipe")
        verbs.show_method(what, as_json=as_json)
        return
    verbs.check_is_recipe(what)
    points = parse_overrides(overrides or [])
    verbs.show_recipes([load_recipe(what, point, smoke=smoke) for point in points], as_json=as_json)


@app.command()
def init(
    path: Annotated[Path, typer.Argument(metavar="NAME", help="The new recipe: a name, or a file's path.")],
    source: Annotated[
        str, typer.Option("--from", help="The recipe that it is a copy of.", autocompletion=complete_recipe)
    ] = "digits",
) -> None:
    """Write a recipe to start from, with the meaning of each key, and the schema that editors check it with."""
    from sltt_bench.planning.recipe_template import write_template

    for written in write_template(path, source):
        typer.echo(f"wrote {written}")


@app.command()
def schema() -> None:
    """Print the JSON schema of recipe files, which editors complete and check them with."""
    from sltt_bench.planning import recipe_schema

    typer.echo(recipe_schema.text(), nl=False)


@app.command()
def doctor(as_json: AsJSON = False) -> None:
    """Say what this machine can measure: versions, GPU, sensors and what is missing."""
    from sltt_bench.command_line import verbs

    raise typer.Exit(verbs.doctor(as_json=as_json))


@app.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")],
    method: Annotated[str, typer.Option("--method", "-m", help="The cell's method.")],
    seed: Annotated[int | None, typer.Option(help="The cell's seed, if several were run.")] = None,
    cell: Annotated[
        str | None, typer.Option(help="The cell's id, if several have the method and the seed.")
    ] = None,
    format_name: Annotated[
        str,
        typer.Option(
            "--format",
            help="nir, onnx, state-dict or eval-results.",
            autocompletion=completing("sltt_bench.export:FORMATS"),
        ),
    ] = "nir",
    out: Annotated[
        Path | None,
        typer.Option(help="The file; by default a new one, named after the cell.", dir_okay=False),
    ] = None,
    dataset_id: Annotated[
        str | None, typer.Option(help="eval-results: the benchmark's data set on the Hub, OWNER/NAME.")
    ] = None,
    task_id: Annotated[
        str | None, typer.Option(help="eval-results: the benchmark's task. Default: default.")
    ] = None,
    source_url: Annotated[
        str | None, typer.Option(help="eval-results: where the run's files can be seen.")
    ] = None,
) -> None:
    """Write what was trained for elsewhere: NIR for neuromorphic tools, ONNX, torch's state-dict, or its accuracy."""
    from sltt_bench.export import FORMATS, Benchmark
    from sltt_bench.export import export as write

    if format_name not in FORMATS:
        _fail(f"--format {format_name}: known are {', '.join(FORMATS)}{nearest(format_name, FORMATS)}")
    if format_name != "eval-results" and any((dataset_id, task_id, source_url)):
        _fail("--dataset-id, --task-id and --source-url belong to --format eval-results")
    for option, text, form, example in (
        ("--dataset-id", dataset_id, r"[\w.-]+/[\w.-]+", "OWNER/NAME"),
        ("--task-id", task_id, r"\S+", "a task of the data set's eval.yaml"),
        ("--source-url", source_url, r"https?://\S+", "an address, https://..."),
    ):
        if text is not None and not re.fullmatch(form, text):
            _fail(f"{option} {text!r}: wants {example}")
    if not run.is_dir():
        _fail(f"{run}: no such folder; `sltt-bench run` makes one")
    benchmark = None if dataset_id is None else Benchmark(dataset_id, task_id or "default", source_url)
    typer.echo(f"wrote {write(run, method, seed, format_name, out, benchmark, cell)}")


@submission_app.command("check")
def submission_check(
    folders: Annotated[list[Path], typer.Argument(metavar="FOLDER", help="Folders with results.")],
    as_json: AsJSON = False,
) -> None:
    """Say whether results meet the rules of docs/rules.md; exit code 1 if not."""
    from sltt_bench.command_line import verbs

    raise typer.Exit(verbs.check_submission(folders, as_json=as_json))


@analyze_app.command()
def gradients(
    recipe: RecipeName,
    over: Annotated[
        list[str] | None,
        typer.Option(help="A recipe or neuron field and its values: tau=1.1,2.0. Grids multiply."),
    ] = None,
    epochs: Annotated[
        str, typer.Option(help="When to look: comma list of epochs; 0 is before training, `last` works.")
    ] = "0",
    batches: Annotated[int, typer.Option(help="Training batches to look at.")] = 8,
    compared: Annotated[
        str | None, typer.Option("--method-gradients", help="Methods whose gradients are set beside BPTT's (comma list).",
                                 autocompletion=complete_methods)
    ] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Weights to start from.", dir_okay=False)] = None,
    method: Annotated[
        str, typer.Option("--method", "-m", help="What trains the network (comma list).",
                          autocompletion=complete_methods)
    ] = "bptt",
    seed: Seeds = None,
    overrides: Overrides = None,
    smoke: Smoke = False,
    synthetic: Synthetic = False,
    data_dir: DataDir = Path("data"),
    device: Device = "auto",
    jobs: Jobs = None,
    devices: Devices = None,
    oversubscribe: Oversubscribe = False,
    out: Out = Path("results"),
    resume: Resume = False,
    timeout: Timeout = None,
    dry_run: DryRun = False,
) -> None:  # fmt: skip
    """Take BPTT's gradient apart: how much of it travels through space, how much through time."""
    from sltt_bench.analysis.plan import full_paths, plan_analysis
    from sltt_bench.planning.checkpoint_file import checkpoint_file

    if incomplete := [text for text in over or () if "=" not in text]:
        _fail(f"--over {incomplete[0]}: wants a field and its values, e.g. --over tau=1.1,2.0")
    places = where_to_run(parse_device(device), jobs, devices, crowd=oversubscribe or dry_run)
    init = None if checkpoint is None else str(checkpoint_file(str(checkpoint), "--checkpoint"))
    grid = [*fields_set(overrides, full_paths), *fields_set(over, full_paths, option="--over")]
    backend = "reference"
    device = places[0].device or device
    request = make_request(
        method, backend, seed, grid, device, smoke=smoke, synthetic=synthetic, init=init, data_dir=data_dir
    )
    plans = plan_analysis(
        recipe,
        request,
        epochs=epochs,
        batches=batches,
        compared=comma_list("--method-gradients", compared) or (),
    )
    code = _carry_out(plans, dry_run, timeout, out=out, data_dir=data_dir, resume=resume, places=places)
    raise typer.Exit(code)


@data_app.command()
def prepare(
    name: DatasetName, data_dir: DataDir = Path("data"), split: Split = None, overrides: DataOverrides = None
) -> None:
    """Download a data set where its source allows it, or say exactly which file to put where."""
    from sltt_bench.command_line import verbs

    verbs.prepare_data(name, data_dir, overrides or [], split)


@data_app.command()
def verify(
    name: DatasetName, data_dir: DataDir = Path("data"), split: Split = None, overrides: DataOverrides = None
) -> None:
    """Check counts, shapes, classes and checksums; exit code 1 if something is wrong."""
    from sltt_bench.command_line import verbs

    raise typer.Exit(verbs.verify_data(name, data_dir, overrides or [], split))


# A verb's work -------------------------------------------------------------------------------


def _carry_out(
    plans: list["Plan"], dry_run: bool, timeout: str | None, *, out: Path, resume: bool, **how: Any
) -> int:
    """Run the plans, `how` as `commands.run_plans` takes it, or show them alone; the exit code."""
    from sltt_bench.command_line import commands

    timeout_s = parse_seconds(timeout)
    plans = commands.without_refused(plans)
    if dry_run:
        commands.check_batches(cell for plan in plans for cell in plan)
        commands.show_plans(plans, out=out, resume=resume)
        return 0
    return commands.run_plans(plans, timeout_s=timeout_s, out=out, resume=resume, **how)


# Errors -----------------------------------------------------------------------------------------


def _print_error(text: str) -> None:
    """Red on a terminal; not through click, which writes UTF-8 where a terminal says that it shows ASCII."""
    red = sys.stderr.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
    print(typer.style(text, fg=typer.colors.RED) if red else text, file=sys.stderr)


def _fail(message: str) -> NoReturn:
    _print_error(f"error: {printable(message)}")
    raise typer.Exit(WRONG_USAGE)


def main() -> None:
    """Entry point of the command `sltt-bench`."""
    open_closed_streams()
    print_what_the_terminal_lacks_in_ascii()
    if "--debug" in sys.argv:
        _State.debug = True
    output, errors = LastingOutput(sys.stdout), LastingOutput(sys.stderr)
    sys.stdout, sys.stderr = cast(TextIO, output), cast(TextIO, errors)
    try:
        app(prog_name="sltt-bench")
    except SystemExit as end:
        output.flush()
        if output.loss:
            _print_error(f"error: not all that was printed could be written ({output.loss})")
            sys.exit(end.code or getattr(os, "EX_IOERR", 74))
        raise
    except Exception as error:
        if _State.debug:
            raise
        text: Any = printable(" ".join(str(error).split())) or type(error).__name__
        _print_error(f"error: {text}")
        _print_error("This is a fault of sltt-bench; --debug before the command shows where.")
        sys.exit(os.EX_SOFTWARE if hasattr(os, "EX_SOFTWARE") else 70)
