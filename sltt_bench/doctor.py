"""What this machine can measure: versions, the GPU and its sensors, memory, and what is missing.

torch is loaded in a process of its own, so that a broken installation is a finding and no crash.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

from sltt_bench import provenance

Level = Literal["ok", "note", "fault"]

EXTRAS = {
    "tonic": ("events", "DVS-Gesture and CIFAR10-DVS"),
    "spikingjelly": ("spikingjelly", "--backend spikingjelly"),
    "tensorboard": ("tensorboard", "--log tensorboard"),
}
"""Optional package → (extra that installs it, what it is for)."""

_TORCH_PROBE = """
import json, torch, torchvision
from sltt_bench.measure import Profiler
device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
with Profiler(device) as profiler:
    absent = dict(profiler.absent)
    notes = dict(profiler.notes)
    description = profiler.description()
print(json.dumps({
    "torch": torch.__version__, "torchvision": torchvision.__version__,
    "device": str(device), "threads": torch.get_num_threads(), "cuda": torch.version.cuda,
    "absent": absent, "notes": notes, "description": description,
}, default=str))
"""


@dataclass(frozen=True)
class Finding:
    """One line of the diagnosis."""

    level: Level
    subject: str
    text: str


def examine() -> list[Finding]:
    """Everything that decides what can be measured here."""
    return [*_machine(), *_torch(), *_extras()]


def _machine() -> list[Finding]:
    facts = provenance.collect([])
    return [
        Finding("ok", "sltt-bench", str(facts["sltt_bench"])),
        Finding("ok", "python", str(facts["python"])),
        Finding("ok", "cpu", str(facts["cpu"])),
    ]


def _torch() -> list[Finding]:
    probe = subprocess.run([sys.executable, "-c", _TORCH_PROBE], capture_output=True, text=True, check=False)
    if probe.returncode != 0:
        last = probe.stderr.strip().splitlines()[-1] if probe.stderr.strip() else "no message"
        return [
            Finding(
                "fault", "torch", f"{last}; reinstall with `pip install --force-reinstall torch torchvision`"
            )
        ]
    said = json.loads(probe.stdout.strip().splitlines()[-1])
    findings = [
        Finding(
            "ok", "torch", f"{said['torch']}, torchvision {said['torchvision']}, {said['threads']} threads"
        ),
    ]
    if said["device"] == "cpu":
        built = f"this torch is built for CUDA {said['cuda']}" if said["cuda"] else "this torch has no CUDA"
        findings.append(
            Finding("note", "gpu", f"none that torch can use ({built}); everything runs on the CPU")
        )
    else:
        findings.append(Finding("ok", "gpu", json.dumps(said["description"], default=str)))
    findings += [
        Finding("note", column, f"stays empty: {reason}") for column, reason in said["absent"].items()
    ]
    findings += [Finding("note", subject, text) for subject, text in said["notes"].items()]
    return findings


def _extras() -> list[Finding]:
    findings = []
    for package, (extra, purpose) in EXTRAS.items():
        try:
            findings.append(Finding("ok", package, version(package)))
        except PackageNotFoundError:
            text = f"not installed; for {purpose}: pip install 'sltt-bench[{extra}]'"
            findings.append(Finding("note", package, text))
    return findings
