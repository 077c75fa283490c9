"""GPU figures from real `pynvml` calls against a small fake NVML library, compiled here.

Each test runs a script in a process of its own, since the loader looks for libraries at its start. The
script changes what the fake answers with `now(key=value)` (keys in fake_nvml/fake_nvml.c).
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sltt_bench.measure.nvml import clock_limit_names, same_gpu

GIB = 1 << 30
GPU_0 = "GPU-00000000-aaaa-bbbb-cccc-dddddddddddd"
GPU_1 = "GPU-11111111-aaaa-bbbb-cccc-dddddddddddd"

PREAMBLE = """
import json, os, time
from sltt_bench.measure import Profiler

GIB = 1 << 30

class Cpu:  # what the profiler asks of a torch.device: torch itself would take seconds to load
    type = "cpu"

def now(gpu=None, **said):
    prefix = "" if gpu is None else f"gpu{gpu}."
    with open(os.environ["FAKE_NVML"], "a") as file:
        file.writelines(f"{prefix}{key} {value}\\n" for key, value in said.items())

def fail(function, code):
    now(**{"fail." + function: code})

samples = []

def next_samples():
    "Wait until a sample has begun and ended."
    seen = len(samples)
    while len(samples) < seen + 2:
        time.sleep(0.002)

def profiler_of(uuid="GPU-00000000-aaaa-bbbb-cccc-dddddddddddd", interval_s=0.02):
    return Profiler(Cpu(), on_sample=samples.append, interval_s=interval_s, gpu_uuid=uuid)

"""
REPORT = """
print(json.dumps({"figures": figures, "absent": profiler.absent, "notes": profiler.notes,
                  "description": profiler.description(), "samples": samples}))
"""

Script = Callable[..., Any]


def compile_fake(folder: Path, *flags: str) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs a C compiler and Linux, to build the fake NVML library")
    source = Path(__file__).parent / "fake_nvml" / "fake_nvml.c"
    library = folder / "libnvidia-ml.so.1"
    command = [compiler, "-Wall", "-Werror", "-shared", "-fPIC", *flags, "-o", str(library), str(source)]
    subprocess.run(command, check=True)
    return folder


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_fake(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def script(library: Path, tmp_path: Path) -> Script:
    """Run a script against the fake; the JSON that it prints last."""

    def run(body: str, *, library: Path = library, ends: str = REPORT, **environment: str) -> Any:
        control = tmp_path / "fake_nvml.txt"
        control.write_text("")
        cuda = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER")
        inherited = {key: value for key, value in os.environ.items() if key not in cuda}
        done = subprocess.run(
            [sys.executable, "-c", PREAMBLE + body + ends],
            env={**inherited, "LD_LIBRARY_PATH": str(library), "FAKE_NVML": str(control), **environment},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


# Memory -----------------------------------------------------------------------------------------


def test_the_process_peak_between_the_borders_of_an_epoch_is_seen(script: Script) -> None:
    printed = script("""
now(process_used=1 * GIB, used=20 * GIB)
with profiler_of() as profiler:
    epoch = profiler.epoch(1)
    with epoch.train():
        now(process_used=3 * GIB)
        next_samples()
        now(process_used=2 * GIB)
    now(process_used=9 * GIB)  # evaluation and what follows are no part of the figure
    with epoch.evaluate():
        next_samples()
    figures = epoch.figures()
""")
    assert printed["figures"]["peak_nvml_bytes"] == 3 * GIB
    assert printed["figures"]["peak_nvml_scope"] == "process"
    assert "peak_nvml_bytes" not in printed["absent"] | printed["notes"]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("now(process_used=-1)", "does not tell the memory of single processes"),
        ("now(process_used=0)", "does not tell the memory of single processes"),
        ("now(pid=123456789)", "NVML lists no memory for this process"),
        ("fail('nvmlDeviceGetComputeRunningProcesses_v3', 4)", "Insufficient Permissions"),
    ],
)
def test_without_memory_of_the_process_the_figure_is_the_devices(
    script: Script, answer: str, reason: str
) -> None:
    printed = script(f"""
now(used=7 * GIB)
{answer}
with profiler_of() as profiler:
    epoch = profiler.epoch(1)
    with epoch.train():
        pass
    figures = epoch.figures()
""")
    assert printed["figures"]["peak_nvml_bytes"] == 7 * GIB
    assert printed["figures"]["peak_nvml_scope"] == "device"
    assert reason in printed["notes"]["peak_nvml_bytes"]
    assert printed["samples"][0]["nvml_scope"] == "device"


def test_a_scope_that_changes_in_mid_epoch_is_not_mixed_into_one_figure(script: Script) -> None:
    printed = script("""
now(process_used=5 * GIB, used=6 * GIB)
figures = []
with profiler_of() as profiler:
    for number in (1, 2, 3):
        epoch = profiler.epoch(number)
        with epoch.train():
            if number == 2:
                now(process_used=-1, used=4 * GIB)
                next_samples()
        now(process_used=5 * GIB)
        figures.append(epoch.figures())
""")
    peaks = [(f["peak_nvml_bytes"], f["peak_nvml_scope"]) for f in printed["figures"]]
    assert peaks == [(5 * GIB, "process"), (6 * GIB, "device"), (5 * GIB, "process")]
    assert printed["notes"]["peak_nvml_bytes"].endswith("(epoch 2)")


def test_the_figure_of_another_process_with_our_number_is_refused(script: Script) -> None:
    printed = script("""
from sltt_bench.measure import devices
devices.ComputeDevice.reserved_bytes = lambda self: 2 * GIB  # the allocator knows better than NVML
now(process_used=1 * GIB, used=8 * GIB)
with profiler_of() as profiler:
    epoch = profiler.epoch(1)
    with epoch.train():
        pass
    figures = epoch.figures()
""")
    assert printed["figures"]["peak_nvml_bytes"] == 8 * GIB
    assert printed["figures"]["peak_nvml_scope"] == "device"
    assert "another process" in printed["notes"]["peak_nvml_bytes"]


def test_the_doctor_asks_whether_nvml_tells_the_memory_of_this_process(script: Script) -> None:
    printed = script("""
from sltt_bench.command_line.torch_probe import measured
figures = []
now(process_used=1 * GIB, used=8 * GIB)
profiler = profiler_of()
figures.append(measured(profiler))
now(process_used=-1)
figures.append(measured(profiler_of()))
""")
    known, unknown = printed["figures"]
    assert known["process_bytes"] == GIB
    assert known["no_process_bytes"] is None
    assert unknown["process_bytes"] is None
    assert unknown["no_process_bytes"]
    assert known["description"]["gpu"]["uuid"] == GPU_0


def test_more_memory_than_the_gpu_has_is_no_reading(script: Script) -> None:
    printed = script("""
figures = []
with profiler_of() as profiler:
    for number, lies in ((1, {"process_used": 25 * GIB, "used": 3 * GIB}), (2, {"used": 25 * GIB})):
        now(**lies)
        epoch = profiler.epoch(number)
        with epoch.train():
            pass
        figures.append(epoch.figures())
""")
    peaks = [(figures["peak_nvml_bytes"], figures["peak_nvml_scope"]) for figures in printed["figures"]]
    assert peaks == [(3 * GIB, "device"), (None, None)]
    reason = f"the driver gives {25 * GIB} bytes in use, more than the {24 * GIB} that the GPU has"
    assert reason in printed["notes"]["peak_nvml_bytes"]
    assert printed["absent"]["peak_nvml_bytes"] == f"{reason}; {reason} (epoch 2)"


# Energy and utilisation -------------------------------------------------------------------------


def test_energy_is_what_the_counter_advanced_while_training(script: Script) -> None:
    printed = script("""
now(energy_mj=1_000_000)
with profiler_of() as profiler:
    now(energy_mj=2_000_000)
    epoch = profiler.epoch(1)
    with epoch.train():
        now(energy_mj=2_012_500)
    with epoch.evaluate():
        now(energy_mj=3_000_000)
    figures = epoch.figures()
""")
    assert printed["figures"]["energy_j"] == pytest.approx(12.5)
    assert "energy_j" not in printed["absent"]


def test_a_counter_that_stood_still_gives_no_energy_rather_than_zero(script: Script) -> None:
    printed = script("""
now(energy_mj=5000)
with profiler_of() as profiler:
    epoch = profiler.epoch(4)
    with epoch.train():
        pass
    figures = epoch.figures()
""")
    assert printed["figures"]["energy_j"] is None
    assert "did not advance" in printed["absent"]["energy_j"]
    assert "(epoch 4)" in printed["absent"]["energy_j"]


def test_a_counter_that_went_back_is_no_short_epoch(script: Script) -> None:
    printed = script("""
now(energy_mj=5000)
with profiler_of() as profiler:
    epoch = profiler.epoch(1)
    with epoch.train():
        now(energy_mj=1000)
    figures = epoch.figures()
""")
    assert printed["figures"]["energy_j"] is None
    assert "went back" in printed["absent"]["energy_j"]


def test_a_gpu_without_an_energy_counter_says_so_before_the_first_epoch(script: Script) -> None:
    printed = script("""
fail("nvmlDeviceGetTotalEnergyConsumption", 3)
profiler = profiler_of()
figures = None
""")
    assert printed["absent"] == {
        "energy_j": "nvmlDeviceGetTotalEnergyConsumption: Not Supported (at the start)",
        "allocated_at_reset_bytes": "the device is the CPU",
        "peak_allocated_bytes": "the device is the CPU",
        "peak_reserved_bytes": "the device is the CPU",
    }


def test_utilisation_leaves_out_the_reading_that_describes_the_time_before(script: Script) -> None:
    printed = script("""
now(utilisation=10)
with profiler_of(interval_s=60) as profiler:
    epoch = profiler.epoch(1)
    with epoch.train():
        now(utilisation=80)
    figures = epoch.figures()
""")
    assert printed["figures"]["gpu_util_mean"] == pytest.approx(0.8)


def test_utilisation_is_the_mean_of_the_readings(script: Script) -> None:
    printed = script("""
now(utilisation=20)
with profiler_of() as profiler:
    epoch = profiler.epoch(1)
    with epoch.train():
        next_samples()
        now(utilisation=80)
    figures = epoch.figures()
""")
    readings = [sample["gpu_util"] for sample in printed["samples"] if sample["phase"] == "train"][1:]
    assert {0.2, 0.8} == set(readings)
    assert printed["figures"]["gpu_util_mean"] == pytest.approx(sum(readings) / len(readings))


def test_a_utilisation_above_the_whole_is_no_reading(script: Script) -> None:
    printed = script("""
with profiler_of() as profiler:
    epoch = profiler.epoch(1)
    with epoch.train():
        now(utilisation=255)
    figures = epoch.figures()
""")
    assert printed["figures"]["gpu_util_mean"] is None
    assert printed["absent"]["gpu_util_mean"] == "the driver gives a share of 255% (epoch 1)"


# Failures in mid-run ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "column", "value"),
    [
        ("nvmlDeviceGetUtilizationRates", "gpu_util_mean", 0.5),
        ("nvmlDeviceGetTotalEnergyConsumption", "energy_j", 1.0),
    ],
)
def test_a_call_that_fails_in_mid_run_empties_the_epochs_concerned(
    script: Script, function: str, column: str, value: float
) -> None:
    printed = script(f"""
figures = []
with profiler_of() as profiler:
    for number in range(1, 6):
        epoch = profiler.epoch(number)
        now(energy_mj=1000 * number)
        if number == 4:
            fail("{function}", 0)
        with epoch.train():
            now(energy_mj=1000 * number + 1000)
            if number == 2:
                fail("{function}", 15)
            next_samples()
        figures.append(epoch.figures())
""")
    assert [figures[column] for figures in printed["figures"]] == [value, None, None, value, value]
    assert all(
        figures["peak_nvml_bytes"] == 1 << 20 and figures["train_s"] > 0 for figures in printed["figures"]
    )
    assert printed["absent"][column] == f"{function}: GPU is lost (2 epochs, 2 to 3)"


def test_memory_that_cannot_be_read_at_all_is_empty_with_its_scope(script: Script) -> None:
    printed = script("""
figures = []
with profiler_of() as profiler:
    for number in (1, 2):
        epoch = profiler.epoch(number)
        with epoch.train():
            if number == 2:
                fail("nvmlDeviceGetComputeRunningProcesses_v3", 999)
                fail("nvmlDeviceGetMemoryInfo", 999)
                next_samples()
        figures.append(epoch.figures())
""")
    assert [f["peak_nvml_bytes"] for f in printed["figures"]] == [1 << 20, None]
    assert [f["peak_nvml_scope"] for f in printed["figures"]] == ["process", None]
    for column in ("peak_nvml_bytes", "peak_nvml_scope"):
        assert "nvmlDeviceGetMemoryInfo: Unknown Error" in printed["absent"][column]
    assert printed["samples"][-1]["nvml_used_bytes"] is None
    assert printed["samples"][-1]["nvml_scope"] is None


def test_a_gpu_that_is_lost_altogether_does_not_stop_the_run(script: Script) -> None:
    printed = script("""
with profiler_of() as profiler:
    epoch = profiler.epoch(1)
    with epoch.train():
        for function in ("nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetMemoryInfo",
                         "nvmlDeviceGetUtilizationRates", "nvmlDeviceGetPowerUsage", "nvmlDeviceGetClockInfo",
                         "nvmlDeviceGetTemperature", "nvmlDeviceGetCurrentClocksEventReasons",
                         "nvmlDeviceGetTotalEnergyConsumption", "nvmlShutdown"):
            fail(function, 15)
        next_samples()
    with epoch.evaluate():
        next_samples()
    figures = epoch.figures()
""")
    assert printed["figures"]["train_s"] > 0
    assert printed["figures"]["eval_s"] > 0
    for column in ("peak_nvml_bytes", "peak_nvml_scope", "energy_j", "gpu_util_mean"):
        assert printed["figures"][column] is None
        assert "GPU is lost" in printed["absent"][column]
    assert printed["description"]["gpu"]["at_end"]["power_w"] is None
    assert (
        printed["description"]["gpu"]["at_end"]["missing"]["power_w"]
        == "nvmlDeviceGetPowerUsage: GPU is lost"
    )


def test_a_listener_that_raises_ends_the_timeline_and_not_the_run(script: Script) -> None:
    printed = script("""
def refuse(sample):
    raise OSError("disk full")

with Profiler(Cpu(), on_sample=refuse, gpu_uuid="GPU-00000000-aaaa-bbbb-cccc-dddddddddddd") as profiler:
    epoch = profiler.epoch(1)
    with epoch.train():
        pass
    figures = epoch.figures()
""")
    assert printed["figures"]["peak_nvml_bytes"] == 1 << 20
    assert printed["notes"]["timeline"] == "broken off: OSError: disk full"


# Which GPU --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("uuid", "gibibytes"), [(GPU_0, 10), (GPU_1, 11)])
def test_of_two_gpus_the_one_that_torch_computes_on_is_watched(
    script: Script, uuid: str, gibibytes: int
) -> None:
    printed = script(
        f"""
now(count=2)
now(gpu=0, process_used=10 * GIB)
now(gpu=1, process_used=11 * GIB)
with profiler_of("{uuid}") as profiler:
    epoch = profiler.epoch(1)
    with epoch.train():
        pass
    figures = epoch.figures()
"""
    )
    assert printed["figures"]["peak_nvml_bytes"] == gibibytes * GIB


def test_the_spelling_of_torch_finds_the_gpu(script: Script) -> None:
    printed = script("""
now(count=2)
profiler = profiler_of("11111111-AAAA-bbbb-cccc-dddddddddddd")
figures = None
""")
    assert printed["description"]["gpu"]["uuid"] == GPU_1


@pytest.mark.parametrize(
    ("answer", "uuid", "reason"),
    [
        ("now(mig=1)", GPU_0, "sliced (MIG)"),
        ("", "MIG-5a5a5a5a-aaaa-bbbb-cccc-dddddddddddd", "shows no GPU with the UUID MIG-5a5a5a5a"),
        ("fail('nvmlInitWithFlags', 9)", GPU_0, "Driver Not Loaded"),
        ("fail('nvmlInitWithFlags', 18)", GPU_0, "version mismatch"),
        ("fail('nvmlDeviceGetCount_v2', 999)", GPU_0, "Unknown Error"),
    ],
)
def test_a_gpu_that_nvml_cannot_watch_leaves_its_columns_empty_with_the_reason(
    script: Script, answer: str, uuid: str, reason: str
) -> None:
    printed = script(f"""
{answer}
with profiler_of("{uuid}") as profiler:
    epoch = profiler.epoch(1)
    with epoch.train():
        pass
    figures = epoch.figures()
""")
    for column in ("peak_nvml_bytes", "peak_nvml_scope", "energy_j", "gpu_util_mean"):
        assert printed["figures"][column] is None
        assert reason in printed["absent"][column]
    assert printed["description"]["gpu"] is None
    assert printed["samples"] == []


@pytest.mark.parametrize(
    "function", ["nvmlDeviceGetHandleByIndex_v2", "nvmlDeviceGetUUID", "nvmlDeviceGetName"]
)
@pytest.mark.parametrize("code", [4, 15, 999], ids=["no permission", "lost", "unknown"])
def test_a_gpu_beside_that_does_not_answer_is_passed_over(script: Script, function: str, code: int) -> None:
    """The driver counts those of other jobs too, and refuses them."""
    printed = script(
        f"""
from sltt_bench.measure.nvml import list_gpus
now(count=3)
now(gpu=0, **{{"fail.{function}": {code}}})
now(gpu=2, **{{"fail.{function}": {code}}})
listed = [gpu.uuid for gpu in list_gpus()]
with profiler_of("{GPU_1}") as profiler:
    epoch = profiler.epoch(1)
    with epoch.train():
        pass
""",
        ends="print(json.dumps([listed, epoch.figures()]))",
    )
    assert printed[0] == [GPU_1]
    assert (printed[1]["peak_nvml_bytes"], printed[1]["peak_nvml_scope"]) == (1 << 20, "process")


def test_a_gpu_that_does_not_tell_its_memory_is_watched_without(script: Script) -> None:
    printed = script("""
fail("nvmlDeviceGetMemoryInfo", 4)
now(process_used=3 * GIB)
with profiler_of() as profiler:
    epoch = profiler.epoch(1)
    with epoch.train():
        pass
    figures = epoch.figures()
""")
    assert printed["description"]["gpu"]["memory_total_bytes"] is None
    assert (printed["figures"]["peak_nvml_bytes"], printed["figures"]["peak_nvml_scope"]) == (
        3 * GIB,
        "process",
    )


def test_a_gpu_that_does_not_answer_is_a_reason(script: Script) -> None:
    reason = script(
        """
now(**{"fail.nvmlDeviceGetUUID": 15})
profiler = profiler_of()
""",
        ends="print(json.dumps(profiler.absent['energy_j']))",
    )
    assert "shows no GPU with the UUID" in reason
    assert "without an answer" in reason


def test_a_library_that_does_not_load_is_a_reason(script: Script, tmp_path: Path) -> None:
    (tmp_path / "libnvidia-ml.so.1").write_bytes(b"")
    printed = script("profiler = profiler_of()\nfigures = None\n", library=tmp_path)
    assert printed["absent"]["energy_j"] == "NVML: NVML Shared Library Not Found"


# Description and timeline -----------------------------------------------------------------------


def test_the_description_names_the_gpu_its_state_and_what_held_the_clocks_down(script: Script) -> None:
    printed = script("""
now(clock_limits=0x1, used=2 * GIB)
with profiler_of(interval_s=60) as profiler:
    for number, bits in ((1, 0x44), (2, 0x4)):
        with profiler.epoch(number).train():
            now(clock_limits=bits)
    now(clock_limits=0x1)
figures = None
""")
    gpu = printed["description"]["gpu"]
    assert gpu["name"] == "Fake-GPU"
    assert gpu["uuid"] == GPU_0
    assert gpu["driver"] == "570.00.01"
    assert gpu["cuda_driver"] == "12.8"
    assert gpu["memory_total_bytes"] == 24 * GIB
    assert (
        gpu["at_start"]
        == gpu["at_end"]
        == {
            "sm_clock_mhz": 1410,
            "sm_clock_max_mhz": 1980,
            "memory_clock_mhz": 1215,
            "clock_limits": ["gpu_idle"],
            "power_w": 150.5,
            "power_limit_w": 350.0,
            "temperature_c": 61,
            "device_bytes": 2 * GIB,
            "other_compute_processes": 1,
            "missing": {},
        }
    )
    assert gpu["clock_limits_while_training"] == {"sw_power_cap": 1.0, "hw_thermal_slowdown": 0.5}


def test_the_timeline_tells_phases_and_epochs(script: Script) -> None:
    printed = script("""
with profiler_of() as profiler:
    next_samples()
    for number in (1, 2):
        epoch = profiler.epoch(number)
        with epoch.train():
            next_samples()
        with epoch.evaluate():
            next_samples()
figures = None
""")
    phases = list(dict.fromkeys((s["phase"], s["epoch"]) for s in printed["samples"]))
    assert phases == [("warmup", None), ("train", 1), ("eval", 1), ("train", 2), ("eval", 2)]
    elapsed = [s["elapsed_s"] for s in printed["samples"]]
    assert elapsed == sorted(elapsed)
    first = printed["samples"][0]
    del first["elapsed_s"]
    assert first == {
        "phase": "warmup",
        "epoch": None,
        "nvml_used_bytes": 1 << 20,
        "nvml_scope": "process",
        "gpu_util": 0.5,
        "power_w": 150.5,
        "sm_clock_mhz": 1410,
        "temperature_c": 61,
    }


def test_sampling_takes_less_than_one_percent_of_a_core(script: Script) -> None:
    printed = script("""
with profiler_of(interval_s=0.1) as profiler:
    with profiler.epoch(1).train():
        time.sleep(1.5)
figures = None
""")
    sampling = printed["description"]["sampling"]
    assert sampling["interval_s"] == 0.1
    assert 0 < sampling["cpu_share_of_measured_time"] < 0.01
    # The share by the wall's clock holds on an idle machine alone: waiting for a core is in it.
    assert sampling["cpu_share_of_measured_time"] <= sampling["share_of_measured_time"]


def test_a_driver_from_before_the_renamed_calls_is_read_by_their_old_names(
    script: Script, tmp_path: Path
) -> None:
    printed = script(
        """
now(process_used=3 * GIB, clock_limits=0x8)
with profiler_of() as profiler:
    epoch = profiler.epoch(1)
    with epoch.train():
        pass
    figures = epoch.figures()
""",
        library=compile_fake(tmp_path, "-DOLD_DRIVER"),
    )
    assert printed["figures"]["peak_nvml_bytes"] == 3 * GIB
    assert printed["figures"]["peak_nvml_scope"] == "process"
    assert printed["description"]["gpu"]["at_start"]["clock_limits"] == ["hw_slowdown"]


def test_clock_limits_without_a_name_are_numbers() -> None:
    assert clock_limit_names(0) == ()
    assert clock_limit_names(0x4021) == ("gpu_idle", "sw_thermal_slowdown", "0x4000")


# Provenance lists the GPUs ----------------------------------------------------------------------


def test_provenance_lists_every_gpu(script: Script) -> None:
    gpus = script(
        """
from sltt_bench import provenance
now(count=2)
now(gpu=1, name="Other-GPU")
""",
        ends="print(json.dumps(provenance.collect([])['gpus']))",
    )
    assert [gpu["uuid"] for gpu in gpus] == [GPU_0, GPU_1]
    assert [gpu["name"] for gpu in gpus] == ["Fake-GPU", "Other-GPU"]
    assert [gpu["driver"] for gpu in gpus] == ["570.00.01"] * 2


def test_uuids_are_equal_in_every_spelling() -> None:
    assert same_gpu(GPU_1, "11111111-AAAA-BBBB-cccc-dddddddddddd")
    assert not same_gpu(GPU_1, GPU_0)
