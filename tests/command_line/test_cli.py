"""The command line's manners: help at once, exit codes, and errors that name what to do."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

import sltt_bench as package
from sltt_bench.command_line.cli import app
from sltt_bench.command_line.options import complete_methods, complete_recipe
from sltt_bench.planning.plan import Request, make_plans
from sltt_bench.planning.recipe import load_recipe
from sltt_bench.planning.recipe_files import recipe_folder, recipe_names
from sltt_bench.planning.studies import task_name

EVAL_RESULTS = ("export", "results", "-m", "sltt", "--format", "eval-results")

ERRORS = {
    ("run", "digit"): "did you mean 'digits'",
    ("run", "digits", "--method", "slt"): "--method slt: unknown method 'slt' (did you mean 'sltt'?)",
    ("run", "digits", "--set", "data.name=digit"): "unknown data set 'digit' (did you mean 'digits'?)",
    ("run", "digits", "--set", "model.name=cn"): "unknown model 'cn' (did you mean 'cnn'?)",
    ("run", "digits", "--backend", "natif", "--dry-run"): "(did you mean 'native'?)",
    ("estimate", "digits", "--gpu", "h100"): "(did you mean 'h100-sxm'?)",
    ("run", "digits", "--method", "sltt-k9"): "N = 9 and T = 6",
    ("run", "digits", "--set", "train.epochs"): "must have the form key=value",
    ("run", "digits", "--set", "train.epoch=1"): "did you mean 'epochs'",
    ("run", "digits", "--seed", "x"): "seeds are whole numbers",
    ("run", "digits", "--seed", "²", "--dry-run"): "seeds are whole numbers",
    ("run", "digits", "--seed", "1_0", "--dry-run"): "seeds are whole numbers",
    ("run", "digits", "--seed", "0,4294967296", "--dry-run"): "a seed is from 0 to 2**32 - 1",
    ("run", "digits", "--seed", "", "--dry-run"): "--seed '': is an empty list",
    ("run", "digits", "--method", " , ", "--dry-run"): "--method ' , ': is an empty list",
    ("run", "digits", "--backend", "", "--dry-run"): "--backend '': is an empty list",
    ("run", "digits", "--log", "", "--dry-run"): "--log '': is an empty list",
    ("run", "digits", "--devices", "cuda:²", "--dry-run"): "wants a comma list of cuda:N",
    ("run", "digits", "--device", "cuda:²", "--dry-run"): "known are auto, cpu",
    ("report", "recipes", "--format", ","): "--format ',': is an empty list",
    ("power", "recipes", "--effect", ""): "--effect '': is an empty list",
    ("estimate", "digits", "--timesteps", ""): "--timesteps '': is an empty list",
    ("estimate", "digits", "--timesteps", "9" * 5000): "wants whole numbers from 1 on",
    ("analyze", "gradients", "digits", "--method-gradients", "", "--dry-run"): "is an empty list",
    ("analyze", "gradients", "digits", "--epochs", "²", "--dry-run"): "give numbers from 0 to 15",
    ("cancel", "recipes", "--cell", ""): "--cell '': is an empty list",
    ("run", "digits", "--timeout", "2 hours"): "90s, 30m, 2h",
    ("run", "digits", "--timeout", "nan"): "90s, 30m, 2h",
    ("run", "digits", "--jobs", "1000000000", "--dry-run"): "Invalid value for '--jobs'",
    ("run", "digits", "--device", "gpu"): "known are auto, cpu",
    ("run", "digits", "--backend", "natif"): "unknown backend 'natif'",
    ("run", "digits", "--init", "nowhere.pt"): "nowhere.pt: no such file",
    ("run", "nowhere.yaml"): "no such file",
    ("run", "digits,mnist"): "no recipe has this name; several are given with spaces between them",
    (
        "run",
        "nowhere/digits.yml",
    ): "no such file (the shipped recipe is called digits, without folder and ending)",
    (
        "run",
        "digits",
        "--set",
        "train.lr='0.1'",
    ): "valid number, but it is '0.1'; in quotes it is text: leave the quotes out",
    (
        "run",
        "digits",
        "--set",
        "model.channels='[1]'",
    ): "but it is '[1]'; in quotes it is text: leave the quotes out",
    ("run", "recipes/digit.yml"): "no such file (did you mean 'digits.yaml'?)",
    ("run", "recipes/", "--dry-run"): "no such file: it is a folder; give a recipe's file",
    ("run", "digits", "--set", "name=mnist", "--dry-run"): "a recipe's name is that of its file",
    ("init", "."): "is no name of a file",
    ("data", "verify", "mnist", "--split", "x"): "'mnist': split: Input should be 'official', but it is 'x'",
    ("data", "verify", "delayed-recall", "--split", "x"): "'delayed-recall' has no split",
    ("show", "sltt", "--smoke"): "sltt is a method: --set and --smoke belong to a recipe",
    ("show", "sltt", "--set", "timesteps=2"): "sltt is a method",
    (
        "estimate",
        "digits",
        "--baseline",
        "btpt",
    ): "--baseline btpt: no such method here (did you mean 'bptt'?)",
    ("report", "recipes", "--full", "--format", "csv"): "prints nothing; add terminal",
    ("run", "digits", "--seeds", "0,1"): "No such option: --seeds",
    ("prepare", "digits"): "no command 'prepare' (did you mean 'data prepare'?)",
    ("version",): "no command 'version' (did you mean '--version'?)",
    (
        "run",
        "digits",
        "--batch-size",
        "4",
    ): "--batch-size: no such option; a field of the recipe is set with --set train.batch_size=",
    ("data", "verify", "digits", "--limit", "4"): "is set with --set data.limit=",
    ("data", "verify", "digits", "--batch-size", "4"): "No such option: --batch-size",
    ("estimate", "digits", "--seed", "0"): "No such option: --seed",
    ("run", "digits", "--split", "official"): "No such option: --split",
    ("tune", "digits", "--figure", "accuracy"): "No such option: --figure",
    ("run", "digits", "-m", "sltt_k4", "--dry-run"): "unknown method 'sltt_k4' (did you mean 'sltt-k4'?)",
    ("run", "digits", "-m", "bptt_d0.9", "--dry-run"): "(did you mean 'bptt-d0.9'?)",
    (
        "run",
        "digits",
        "-m",
        "bptt sltt",
        "--dry-run",
    ): "unknown method 'bptt sltt'; several are given with commas",
    ("run", "tau", "--dry-run"): "tau: no recipe has this name (did you mean the study 'studies/tau'?)",
    ("run", "studies/tau.yaml", "--dry-run"): "(the shipped study is called studies/tau, without ending)",
    (
        "run",
        "digits",
        "--set",
        "train.epochs=2,lr=0.1",
        "--dry-run",
    ): "'lr=0.1'; another field has a --set of its own",
    ("run", "digits", "--set", "train:epochs=2", "--dry-run"): "unknown key (did you mean 'train.epochs'?)",
    (
        "run",
        "digits",
        "--set",
        "model=mlp",
        "--dry-run",
    ): "--set model: must be a mapping with a `name`: {name: mlp}",
    (
        "run",
        "digits",
        "--set",
        "model.name=mlp",
        "--dry-run",
    ): "; set all of the section instead: model={name: mlp}",
    (
        "run",
        "digits",
        "--set",
        "train={epochs: 1}",
        "--dry-run",
    ): "no default; all of train is set here: one field is train.NAME",
    ("analyze", "gradients", "digits", "--over", "lr=0.1", "--dry-run"): "(did you mean 'train.lr'?)",
    ("compare", "recipes", "recipes", "--threshold", "-1"): "--threshold -1: wants a relative change from 0",
    ("compare", "recipes", "recipes", "--threshold", "nan"): "--threshold nan: wants a relative change",
    ("analyze", "gradients", "digits", "--over", "tau"): "--over tau: wants a field and its values",
    (
        "run",
        "digits",
        "--set",
        "train.lr=1",
        "--set",
        "train.lr=2",
        "--dry-run",
    ): "--set train.lr: is given twice, as '1' and '2'; give it once",
    (
        "run",
        "digits",
        "--set",
        "train.devices=2",
        "--nproc-per-cell",
        "3",
        "--dry-run",
    ): "--set train.devices and --nproc-per-cell: set one field, to '2' and '3'; give one of the two",
    (
        "estimate",
        "digits",
        "--timesteps",
        "2",
        "--set",
        "timesteps=4",
    ): "--set timesteps and --timesteps: set one field, to '4' and '2'",
    (
        "analyze",
        "gradients",
        "digits",
        "--over",
        "tau=1.1",
        "--over",
        "neuron.tau=2",
        "--dry-run",
    ): "--over tau and --over neuron.tau: set one field, to '1.1' and '2'",
    (
        "run",
        "digits",
        "--set",
        "train.lr=1",
        "--set",
        "train={epochs: 3}",
        "--dry-run",
    ): "--set train: replaces all of what --set train.lr",
    (
        "run",
        "digits",
        "-m",
        "bptt",
        "--method",
        "sltt",
        "--dry-run",
    ): "--method is given 2 times; give it once, with commas",
    (
        "analyze",
        "gradients",
        "digits",
        "--epochs",
        "0",
        "--epochs",
        "1",
        "--dry-run",
    ): "--epochs is given 2 times",
    ("data", "verify", "mnist", "--split", "a", "--split", "b"): "--split is given 2 times",
    ("run", "file.yam", "--dry-run"): "no recipe has this name",
    ("show", "README.md"): "README.md: no recipe has this name, and a recipe's file ends with .yaml",
    ("status", "README.md"): "README.md: is a file; give the folder that `sltt-bench submit` made",
    ("cancel", "README.md"): "README.md: is a file; give the folder that `sltt-bench submit` made",
    ("run", "digits", "--no-estimate", "--estimate", "--dry-run"): "--estimate and --no-estimate exclude",
    ("tune", "digits", "--no-estimate", "--estimate", "--dry-run"): "--estimate and --no-estimate exclude",
    ("run", "digits", "--out", "", "--dry-run"): "--out '': is empty",
    ("tune", "digits", "--data-dir", "", "--dry-run"): "--data-dir '': is empty",
    ("estimate", "digits", "--gpu-file", ""): "--gpu-file '': is empty",
    ("analyze", "gradients", "digits", "--checkpoint", ""): "--checkpoint '': is empty",
    ("report", "recipes", "--out", ""): "--out '': is empty",
    ("run", "digits", ""): "RECIPE '': is empty",
    ("show", ""): "RECIPE|METHOD|RUN '': is empty",
    ("init", ""): "NAME '': is empty",
    ("status", ""): "FOLDER '': is empty",
    ("report", ""): "RESULTS '': is empty",
    ("compare", "recipes", ""): "B '': is empty",
    ("data", "prepare", ""): "NAME '': is empty",
    ("submission", "check", ""): "FOLDER '': is empty",
    (
        "run",
        "README.md",
        "--dry-run",
    ): "README.md: no recipe has this name, and a recipe's file ends with .yaml",
    (*EVAL_RESULTS, "--dataset-id", ""): "--dataset-id '': wants OWNER/NAME",
    (*EVAL_RESULTS, "--dataset-id", "a/b/c"): "--dataset-id 'a/b/c': wants OWNER/NAME",
    (*EVAL_RESULTS, "--dataset-id", "a/b", "--task-id", ""): "--task-id '': wants a task",
    (*EVAL_RESULTS, "--dataset-id", "a/b", "--source-url", "here"): "--source-url 'here': wants an address",
    ("submit", "digits", "--slurm", ""): "--slurm '': wants an option of sbatch by its long name",
    ("submit", "digits", "--slurm", "time=1"): "--slurm time=1: `submit` has this option itself: --time",
    ("submit", "digits", "--slurm", "--gpus_per_node=2"): "`submit` has this option itself: --gpus-per-node",
    (
        "submit",
        "digits",
        "--slurm",
        "array=1-9",
    ): "--slurm array=1-9: array is what holds a submission together",
    (
        "submit",
        "digits",
        "--slurm",
        "account=a",
        "--slurm",
        "account=b",
    ): "--slurm account=b: account is given twice",
    (
        "analyze",
        "gradients",
        "digits",
        "--over",
        "taw=1",
        "--dry-run",
    ): "--over: taw: no field of recipes or neurons (did you mean 'tau'?)",
    (
        "analyze",
        "gradients",
        "digits",
        "--set",
        "resett=hard",
        "--dry-run",
    ): "--set: resett: no field of recipes or neurons (did you mean 'reset'?)",
    ("show", "digit"): "did you mean 'digits'",
    ("show", "bptt-lX"): "bptt-lX: no recipe or method has this name (did you mean 'bptt-l2'?)",
    ("show", "SLTT"): "(did you mean 'sltt'?)",
    ("show", "studies/tua"): "no study has this name (did you mean 'studies/tau'?)",
    (
        "run",
        "digits",
        "--method",
        "sltt-kN",
        "--dry-run",
    ): "unknown method 'sltt-kN' (did you mean 'sltt-k2'?)",
    ("run", "sltt", "--dry-run"): "sltt: is a method: `sltt-bench run RECIPE --method sltt`",
    ("list", "recipe"): "did you mean 'recipes'",
    ("report", "nowhere"): "no such folder",
    ("compare", "nowhere", "nowhere"): "no such folder",
    ("power", "nowhere"): "nowhere: does not exist",
}


@pytest.mark.parametrize(("arguments", "reason"), ERRORS.items(), ids=lambda value: str(value)[:40])
def test_wrong_usage_says_what_and_how_and_exits_with_two(arguments: tuple[str, ...], reason: str) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert reason in result.output
    assert "Traceback" not in result.output


def test_a_file_at_hand_is_told_from_a_recipe_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("mine", "digits"):
        Path(f"{name}.yaml").write_text("extends: vowels\ntrain: {epochs: 3}\n")
    for verb in ("run", "show"):
        result = CliRunner().invoke(app, [verb, "mine"])
        assert result.exit_code == 2
        assert "no recipe has this name, but a file has: give it with its ending, mine.yaml" in result.output
    remark = "digits is the shipped recipe; the file digits.yaml is given with its ending"
    assert make_plans("digits", Request())[0].left_out == (remark,)
    assert not make_plans("digits.yaml", Request())[0].left_out
    monkeypatch.chdir(recipe_folder())
    assert not make_plans("digits", Request())[0].left_out


def test_a_report_is_written_into_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = CliRunner().invoke(app, ["report", "results", "--out", str(tmp_path / "file")])
    assert result.exit_code == 2
    assert "Invalid value for '--out'" in result.output
    assert "Measured on" not in result.output


OF_OTHERS = {
    *("--force-reinstall", "--shm-size"),
    *(
        "--array",
        "--kill-on-bad-exit",
        "--noheader",
        "--ntasks",
        "--ntasks-per-node",
        "--overlap",
        "--states",
    ),
    *("--unbuffered", "--error-unmatch", "--no-optional-locks", "--porcelain"),
    *("--bad", "--grid", "--ink", "--sans", "--soft", "--surface"),
}
"""Options of pip, docker, Slurm and git, and colours of a page, that stand in the source."""


def test_no_text_of_the_package_names_an_option_or_a_command_that_there_is_not() -> None:
    verbs = dict(verbs_of(get_command(app)))
    options = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
    for file in sorted(Path(package.__file__).parent.rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        unknown = (
            {*options.findall(text)} - OF_OTHERS - {"--version", "--debug", "--help"}.union(*verbs.values())
        )
        assert not unknown, (file, unknown)
        for shown in re.findall(r"`sltt-bench (?!\{|data\b)([^`\n]+)`", text):
            verb = next(verb for verb in (" ".join(shown.split()[:2]), shown.split()[0]) if verb in verbs)
            assert verbs[verb].issuperset(options.findall(shown)), (file, shown)


def verbs_of(command: Any, *words: str) -> Iterator[tuple[str, set[str]]]:
    """Each verb with its options."""
    for name, part in getattr(command, "commands", {}).items():
        yield from verbs_of(part, *words, name)
    if not hasattr(command, "commands"):
        yield (
            " ".join(words),
            {name for each in command.params for name in (*each.opts, *each.secondary_opts)},
        )


def test_flags_and_what_adds_up_may_be_given_again() -> None:
    again = ["run", "digits", "--dry-run", "--dry-run", "--set", "timesteps=2", "--set", "train.epochs=1"]
    again += ["--no-estimate", "--no-estimate"]
    assert CliRunner().invoke(app, again).exit_code == 0


def test_the_help_of_every_verb_is_whole_in_a_terminal_of_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """A word that is wider than its column is cut off, and with it names that nobody then knows of."""
    monkeypatch.setenv("COLUMNS", "80")

    def cut(command: Any, *verbs: str) -> Iterator[str]:
        for name, below in getattr(command, "commands", {}).items():
            yield from cut(below, *verbs, name)
        lines = CliRunner().invoke(app, [*verbs, "--help"]).output.splitlines()
        yield from (f"{' '.join(verbs)}: {line}" for line in lines if "…" in line)

    assert list(cut(get_command(app))) == []


def test_help_and_usage_errors_do_not_load_torch() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from sltt_bench.command_line.cli import app;"
        "CliRunner().invoke(app, ['--help']); CliRunner().invoke(app, ['run', 'digit']);"
        "CliRunner().invoke(app, ['run', 'digits', '--dry-run']);"
        "CliRunner().invoke(app, ['list']);"
        "import sltt_bench.command_line.commands, sltt_bench.running.runner, sltt_bench.results.reader, sltt_bench.report;"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_python_dash_m_is_the_same_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sltt_bench", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("sltt-bench 0.")


def test_list_names_what_is_registered() -> None:
    output = CliRunner().invoke(app, ["list"]).output
    for name in ("digits", "bptt", "sltt-kN", "cnn", "reference"):
        assert name in output


def test_recipes_are_listed_by_modality_with_t_and_whether_they_need_a_download() -> None:
    lines = CliRunner().invoke(app, ["list", "recipes"]).output.splitlines()
    headings = [line for line in lines if line.startswith("recipes")]
    assert headings == [f"recipes: {modality}" for modality in ("events", "images", "memory", "speech")]
    vowels = lines.index(next(line for line in lines if line.strip().startswith("vowels")))
    assert lines[vowels].split()[:5] == ["vowels", "T", "=", "29", "no"]
    assert lines[vowels].split()[5:8] == ["download", "0.5", "min"]
    assert vowels > lines.index("recipes: speech")
    words = " ".join(lines).split()
    assert all(name in words for name in recipe_names())


def test_a_list_loses_no_word_at_eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    output = CliRunner().invoke(app, ["list", "recipes"]).output
    lines = {line.split()[0]: line for line in output.splitlines() if "  T = " in line}
    assert list(lines) == [
        name for _, name in sorted((load_recipe(n).data.modality, n) for n in recipe_names())
    ]
    assert all(line.rstrip().endswith(("download", "downloaded", "min")) for line in lines.values())
    shown = "".join(output.split())
    for name in recipe_names():
        assert load_recipe(name).description.split()[-1] in shown, name


def test_show_prints_a_recipe_that_loads_again(tmp_path: Path) -> None:
    output = CliRunner().invoke(app, ["show", "digits", "--set", "train.epochs=3"]).output
    path = tmp_path / "digits.yaml"
    path.write_text(output)
    again = load_recipe(str(path))
    assert again.train.epochs == 3
    published = load_recipe("digits", {"train.epochs": 3})
    assert again.fingerprint() == published.fingerprint()
    assert (again.claims, again.cpu_minutes) == ([], None), "a copy claims nothing, as what extends another"
    shown = published.model_dump()
    assert published.claims
    assert {**again.model_dump(), "claims": shown["claims"], "cpu_minutes": shown["cpu_minutes"]} == shown
    start = output.index("# claims:")
    path.write_text(output[:start] + re.sub(r"^# ", "", output[start:], flags=re.MULTILINE))
    assert load_recipe(str(path)) == published, "uncommented, they are as they were"


def test_completion_offers_recipes_and_the_next_method_of_a_list() -> None:
    assert "digits" in complete_recipe("dig")
    assert complete_recipe("digits,mn") == [], "recipes are no list with commas"
    assert complete_methods("bptt,sl")[0] == "bptt,sltt"


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("sltt-bench run digits-s", ["digits-saccade"]),
        ("sltt-bench run digits --method bptt,sltt-k", ["bptt,sltt-k"]),
        ("sltt-bench run digits --backend reference,na", ["reference,native"]),
        ("sltt-bench export runs --format state", ["state-dict"]),
        ("sltt-bench run digits --log tensorboard,ml", ["tensorboard,mlflow", "tensorboard,mlperf"]),
        ("sltt-bench report results --baseline sltt-k", ["sltt-k"]),
        ("sltt-bench show ott", ["ottt", "ottt-o"]),
        ("sltt-bench data prep", ["prepare"]),
        ("sltt-bench report results --basel", ["--baseline"]),
    ],
)
def test_a_shell_is_offered_what_goes_on_from_what_is_typed(typed: str, offered: list[str]) -> None:
    environment = {
        "_SLTT_BENCH_COMPLETE": "complete_bash",
        "COMP_WORDS": typed,
        "COMP_CWORD": str(len(typed.split()) - 1),
    }
    result = CliRunner().invoke(app, [], prog_name="sltt-bench", env=environment)
    assert result.exit_code == 0
    assert result.output.split() == offered


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "pwsh"])
def test_completion_is_installed_under_the_name_of_the_command(
    shell: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    monkeypatch.setattr("typer.testing._get_command", get_command)  # built for these surroundings
    result = CliRunner().invoke(app, ["--show-completion", shell], prog_name="sltt-bench")
    assert result.exit_code == 0
    assert "_SLTT_BENCH_COMPLETE" in result.output


@pytest.mark.parametrize("arguments", [("digits",), ("studies/time-gradient",), ("studies/size",)])
@pytest.mark.parametrize("width", [60, 80])
def test_a_plan_folds_nothing_and_says_what_tells_its_cells_apart(
    arguments: tuple[str, ...], width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    result = CliRunner().invoke(app, ["run", *arguments, "--dry-run"])
    assert result.exit_code == 0
    assert all(len(line) <= width for line in result.output.splitlines())
    (plan,) = make_plans(arguments[0], Request())
    words = result.output.split()
    for cell in plan:
        assert cell.cell_id in words
        task, tau = task_name(cell.overrides.get("extends", "–")), str(cell.overrides.get("neuron.tau", "–"))
        assert {cell.method, task, tau} <= {*words, "–"}
