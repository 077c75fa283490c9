"""The whole way from a command to CSV files, with cells that end in every possible way."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from plugin import install
from typer.testing import CliRunner

from sltt_bench import __version__
from sltt_bench.command_line.cli import app
from sltt_bench.common.source_digest import own_source_sha256, source_sha256
from sltt_bench.report.grouping import make_groups
from sltt_bench.results.reader import read_results
from sltt_bench.results.schema import CELLS_FILE, EPOCHS_FILE, FILES

SMOKE = ["--smoke", "--device", "cpu", "--no-estimate"]
SHORT = [*SMOKE, "--set", "timesteps=2"]


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["run", *arguments])
    return result.exit_code, result.output


def only_run(out: Path, recipe: str = "digits") -> Path:
    (folder,) = (out / recipe).iterdir()
    return folder


def table(folder: Path, file: str) -> pd.DataFrame:
    return pd.read_csv(folder / file)


@pytest.fixture(scope="module")
def three_methods(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, str]:
    """One smoke run with three methods that several tests look at."""
    out = tmp_path_factory.mktemp("out")
    code, output = run("digits", "--method", "bptt,sltt,sltt-k2", *SMOKE, "--seed", "3", "--out", str(out))
    return only_run(out), code, output


def test_three_methods_leave_a_row_for_each_cell_and_epoch(three_methods: tuple[Path, int, str]) -> None:
    folder, code, output = three_methods
    assert code == 0, output
    cells, epochs = table(folder, CELLS_FILE), table(folder, EPOCHS_FILE)
    assert list(cells.method) == ["bptt", "sltt", "sltt-k2"]
    assert set(cells.status) == {"ok"}
    assert len(epochs) == 6
    assert not list((folder / "logs").iterdir()), "a process that prints nothing leaves no log"
    assert list(epochs.columns) == [column.name for column in FILES[EPOCHS_FILE]]


def test_measured_columns_are_plausible_and_absent_sensors_empty(
    three_methods: tuple[Path, int, str],
) -> None:
    folder, _, _ = three_methods
    epochs = table(folder, EPOCHS_FILE)
    assert list(epochs.cold) == [True, False] * 3
    assert (epochs.train_s > epochs.data_wait_s).all()
    assert (epochs.samples == 64).all()
    assert epochs.test_top1.between(0, 1).all()
    assert (epochs.test_top5 >= epochs.test_top1).all()
    assert epochs.firing_rate.between(0.001, 0.999).all()
    assert (epochs.peak_tensor_bytes > 1000).all()
    assert epochs.peak_allocated_bytes.isna().all()
    assert epochs.energy_j.isna().all()
    provenance = json.loads((folder / "provenance.json").read_text())
    for cell in provenance["cells"].values():
        assert "peak_allocated_bytes" in cell["attempts"]["1"]["absent"]
        assert "energy_j" in cell["attempts"]["1"]["absent"]


def test_the_costs_of_inference_are_neurobenchs_columns(three_methods: tuple[Path, int, str]) -> None:
    folder, _, _ = three_methods
    cells, epochs = table(folder, CELLS_FILE), table(folder, EPOCHS_FILE)
    assert (cells.footprint_bytes > 4 * cells.parameters).all(), "buffers count too"
    # One neuron layer's zeros and spikes are all its outputs, and the last evaluation saw the same.
    last = epochs.groupby("method").firing_rate.last()
    assert (1 - cells.set_index("method").activation_sparsity).to_dict() == pytest.approx(last.to_dict())
    assert (cells.effective_macs + cells.effective_acs < cells.dense_synops).all()
    assert cells.dense_synops.nunique() == 1
    energy = 4.6 * cells.effective_macs + 0.9 * cells.effective_acs
    assert list(cells.estimated_energy_45nm_pj) == pytest.approx(list(energy))


def test_bptt_needs_more_tensor_bytes_than_sltt(three_methods: tuple[Path, int, str]) -> None:
    peak = table(three_methods[0], EPOCHS_FILE).groupby("method").peak_tensor_bytes.first()
    assert peak["bptt"] > 2 * peak["sltt"]
    assert peak["sltt-k2"] == pytest.approx(peak["sltt"], rel=0.01)


def test_cosine_schedule_steps_once_an_epoch(three_methods: tuple[Path, int, str]) -> None:
    rates = table(three_methods[0], EPOCHS_FILE).groupby("method").lr.apply(list)
    assert rates["sltt"] == pytest.approx([0.1, 0.05])


def test_provenance_says_what_ran_and_names_nobody(three_methods: tuple[Path, int, str]) -> None:
    text = (three_methods[0] / "provenance.json").read_text()
    provenance = json.loads(text)
    assert provenance["schema_version"] == 1
    assert provenance["commands"][0]["command"]
    assert str(Path.home()) not in text
    assert not re.search(rf"\b{re.escape(os.uname().nodename)}\b", text)


def test_a_report_finds_what_the_workers_said_of_themselves(three_methods: tuple[Path, int, str]) -> None:
    (group,) = make_groups(read_results([three_methods[0]]))
    key = group.key
    assert int(key.threads) >= 1
    for flag in ("cudnn_allow_tf32 False", "deterministic_algorithms", "float32_matmul_precision"):
        assert flag in key.flags
    assert all((key.software, key.cpu))
    assert key.revision == f"{__version__}, source {own_source_sha256()[:12]}"


def test_all_methods_and_backends_of_a_seed_begin_alike_and_no_other_seed_does(tmp_path: Path) -> None:
    code, output = run(
        "digits", "--method", "bptt,sltt", "--backend", "reference,native", "--seed", "0,1", *SHORT, "--out", str(tmp_path)
    )  # fmt: skip
    assert code == 0, output
    seeds = table(only_run(tmp_path), CELLS_FILE).set_index("cell_id").seed
    cells = json.loads((only_run(tmp_path) / "provenance.json").read_text())["cells"]
    for name in ("weights_sha256", "data_sha256"):
        digests = {(seeds[cell], facts["attempts"]["1"][name]) for cell, facts in cells.items()}
        assert len(cells) == 8
        assert len(digests) == len({digest for _, digest in digests}) == 2
    for name in ("training_samples_sha256", "evaluated_samples_sha256"):
        assert len({facts["attempts"]["1"][name] for facts in cells.values()}) == 1


def test_what_a_plugin_ran_is_told_by_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = install(tmp_path, monkeypatch)
    run("digits", "--method", "third-party", *SHORT, "--out", str(tmp_path / "out"))
    (results,) = read_results([tmp_path / "out"]).runs
    (facts,) = results.told
    assert facts["plugins"] == {
        "methods third-party": {
            "package": "third-party-methods",
            "version": "1.0",
            "source_sha256": source_sha256(site / "third_party_methods.py"),
        }
    }


def test_the_same_seed_gives_identical_losses(three_methods: tuple[Path, int, str], tmp_path: Path) -> None:
    code, _ = run("digits", "--method", "sltt-k2", *SMOKE, "--seed", "3", "--out", str(tmp_path))
    assert code == 0
    first, second = table(three_methods[0], EPOCHS_FILE), table(only_run(tmp_path), EPOCHS_FILE)
    first = first[first.method == "sltt-k2"]  # it draws its steps, besides weights and batches
    assert list(first.train_loss) == list(second.train_loss)
    assert list(first.test_loss) == list(second.test_loss)
    assert list(first.cell_id) == list(second.cell_id)


def test_synthetic_data_leave_accuracy_empty(tmp_path: Path) -> None:
    code, output = run("digits", "--method", "sltt", *SHORT, "--synthetic", "--out", str(tmp_path))
    assert code == 0, output
    epochs = table(only_run(tmp_path), EPOCHS_FILE)
    for column in ("train_top1", "test_loss", "test_top1", "test_top5", "firing_rate"):
        assert epochs[column].isna().all()
    assert (epochs.train_s > 0).all()
    assert table(only_run(tmp_path), CELLS_FILE).effective_macs.isna().all()


def test_every_ending_of_a_cell_is_a_row_and_the_others_finish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch)
    (tmp_path / "third-party-site" / "kill-after").write_text("0")
    methods = "raises,out-of-memory,exits,killed,sltt"
    code, output = run("digits", "--method", methods, *SHORT, "--out", str(tmp_path / "out"))
    assert code == 1
    cells = table(only_run(tmp_path / "out"), CELLS_FILE).set_index("method")
    assert dict(cells.status) == {
        "raises": "error",
        "out-of-memory": "oom",
        "exits": "error",
        "killed": "killed",
        "sltt": "ok",
    }
    assert cells.reason["raises"] == "ZeroDivisionError: planted fault"
    assert "exit code 7" in cells.reason["exits"]
    assert "SIGKILL" in cells.reason["killed"]
    assert "planted fault" in output
    assert math.isnan(cells.last_test_top1["raises"])
    assert cells.exit_code["killed"] == -9
    log = next((only_run(tmp_path / "out") / "logs").glob(f"{cells.cell_id['raises']}*"))
    assert "ZeroDivisionError: planted fault" in log.read_text()


@pytest.mark.waits
def test_a_cell_that_hangs_is_ended_by_the_wall_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch)
    code, _ = run(
        "digits", "--method", "hangs,third-party", *SHORT, "--timeout", "5s", "--out", str(tmp_path / "out")
    )
    assert code == 1
    cells = table(only_run(tmp_path / "out"), CELLS_FILE).set_index("method")
    assert cells.status["hangs"] == "timeout"
    assert cells.reason["hangs"] == "ended after 5 s (--timeout)"
    assert 5 <= cells.wall_s["hangs"] < 600  # it hangs for an hour; the machine may stand still meanwhile
    assert cells.status["third-party"] == "ok"


def test_a_worker_killed_between_epochs_leaves_them_and_resume_finishes_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = install(tmp_path, monkeypatch)
    batches = 2
    instrumented = 2
    settings = (*SHORT, "--set", "train.epochs=4")
    arguments = ("digits", "--method", "killed,sltt", *settings)
    code, _ = run("digits", "--method", "killed", *settings, "--out", str(tmp_path / "whole"))
    assert code == 0
    (site / "kill-after").write_text(str(instrumented + 2 * batches + 1))
    code, _ = run(*arguments, "--out", str(tmp_path / "torn"))
    assert code == 1
    torn = only_run(tmp_path / "torn")
    epochs = table(torn, EPOCHS_FILE)
    assert list(epochs[epochs.method == "killed"].epoch) == [1, 2]
    assert list(epochs[epochs.method == "sltt"].epoch) == [1, 2, 3, 4]
    (site / "kill-after").unlink()
    code, output = run(*arguments, "--out", str(tmp_path / "torn"), "--resume")
    assert code == 0, output
    assert only_run(tmp_path / "torn") == torn
    resumed, whole = table(torn, EPOCHS_FILE), table(only_run(tmp_path / "whole"), EPOCHS_FILE)
    resumed, whole = (t[t.method == "killed"].set_index("epoch") for t in (resumed, whole))
    assert list(resumed.attempt) == [1, 1, 2, 2]
    assert list(resumed.cold) == [True, False, True, False]
    for column in ("train_loss", "train_top1", "test_loss", "test_top1", "lr", "firing_rate"):
        assert list(resumed[column]) == list(whole[column]), column
    last = table(torn, CELLS_FILE).query("method == 'killed'").iloc[-1]
    assert (last.status, last.attempt, last.epochs_done) == ("ok", 2, 4)
    assert last.best_test_top1 == whole.test_top1.max()
    assert not list((torn / "checkpoints").glob("*.pt"))


def test_resuming_a_finished_run_runs_nothing(tmp_path: Path) -> None:
    arguments = ("digits", "--method", "sltt", *SHORT, "--out", str(tmp_path))
    assert run(*arguments)[0] == 0
    before = table(only_run(tmp_path), EPOCHS_FILE)
    code, output = run(*arguments, "--resume")
    assert code == 0
    assert "finished before, kept" in output
    assert table(only_run(tmp_path), EPOCHS_FILE).equals(before)


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long)])
def test_an_interrupt_closes_the_files_and_ends_the_worker(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch)
    command = [sys.executable, "-m", "sltt_bench", "run", "digits", "--method", "hangs,sltt", *SHORT]
    process = subprocess.Popen([*command, "--out", str(tmp_path / "out")], stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not list(tmp_path.glob("out/digits/*/logs/*.log")):
        time.sleep(0.2)
    time.sleep(1)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "--resume goes on from here" in output
    cells = table(only_run(tmp_path / "out"), CELLS_FILE).set_index("method")
    assert cells.status["hangs"] == "killed"
    assert cells.status["sltt"] == "skipped"
    assert number.name in cells.reason["sltt"]
    assert subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, check=False).stdout == b""


def test_dry_run_shows_the_plan_and_writes_nothing(tmp_path: Path) -> None:
    code, output = run("digits", "--method", "bptt,sltt", "--dry-run", "--out", str(tmp_path / "out"))
    assert code == 0
    assert "2 cells" in output
    assert not (tmp_path / "out").exists()
