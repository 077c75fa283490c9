"""Makes a third-party package of faulty methods, found through entry points.

Tests use it to make a cell fail in a certain way in its own process, and to show that third-party methods
run without changes here.
"""

import os
import sys
import textwrap
from pathlib import Path

import pytest

METHODS = '''
"""Methods of a third party, most of them broken on purpose."""

import os
import signal
import sys
import time
from pathlib import Path

import torch


class Plain:
    """SLTT in three lines, as a third party would write it."""

    def accumulate_gradients(self, unroll):
        for t in range(unroll.timesteps):
            unroll.detach_state()
            unroll.backward(unroll.step(t))


class Raises:
    def accumulate_gradients(self, unroll):
        raise ZeroDivisionError("planted fault")


class OutOfMemory:
    def accumulate_gradients(self, unroll):
        torch.empty(1 << 60, dtype=torch.uint8)


class Hangs:
    def accumulate_gradients(self, unroll):
        time.sleep(3600)


class Exits:
    def accumulate_gradients(self, unroll):
        os._exit(7)


class Killed(Plain):
    """Ends its process in the middle of the epoch whose number the file beside this one says."""

    calls = 0

    def accumulate_gradients(self, unroll):
        super().accumulate_gradients(unroll)
        Killed.calls += 1
        limit = Path(__file__).with_name("kill-after")
        if limit.exists() and Killed.calls > int(limit.read_text()):
            os.kill(os.getpid(), signal.SIGKILL)


class OnRankOne(Plain):
    """Something happens to the second of several processes; each leaves a file with its number."""

    def __init__(self, event):
        self.event = event

    def accumulate_gradients(self, unroll):
        Path(__file__).with_name(f"rank-{os.getpid()}").touch()
        super().accumulate_gradients(unroll)
        if os.environ["RANK"] == "1" and torch.distributed.is_initialized():
            {
                "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
                "out-of-memory": lambda: torch.empty(1 << 60, dtype=torch.uint8),
                "hangs": lambda: time.sleep(3600),
            }[self.event]()


def on_rank_one(match, timesteps):
    return OnRankOne(match[1])

def plain(match, timesteps):
    return Plain()

def raises(match, timesteps):
    return Raises()

def out_of_memory(match, timesteps):
    return OutOfMemory()

def hangs(match, timesteps):
    return Hangs()

def exits(match, timesteps):
    return Exits()

def killed(match, timesteps):
    return Killed()
'''

ENTRY_POINTS = """
[sltt_bench.methods]
third-party = third_party_methods:plain
raises = third_party_methods:raises
out-of-memory = third_party_methods:out_of_memory
hangs = third_party_methods:hangs
exits = third_party_methods:exits
killed = third_party_methods:killed
on-rank-1-(.*) = third_party_methods:on_rank_one
"""


def install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the package importable here and in the processes of runs; returns its folder."""
    site = folder / "third-party-site"
    info = site / "third_party_methods-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "third_party_methods.py").write_text(textwrap.dedent(METHODS))
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: third-party-methods\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", str(site), prepend=os.pathsep)
    monkeypatch.delitem(sys.modules, "third_party_methods", raising=False)
    return site
