"""Questions to a process beside this one, which may end, hang or print what it likes."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from sltt_bench.data import DataError
from sltt_bench.data.beside import Lost, ask

MODULE = """
import os, sys, time
from sltt_bench.data.beside import serve

print("an interpreter's greeting", flush=True)

def answer(question):
    print("a library's own words")
    if question == "abort":
        os.abort()
    while question == "hang":
        pass
    if "sleep_s" in question:
        time.sleep(question["sleep_s"])
    return [question, os.getpid()], b"\\n" * question.get("bytes", 0)

serve(answer)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"asked_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def test_one_process_answers_all_questions(module: str) -> None:
    answers = [ask(module, {"bytes": count, "file": "ä\n"}, 60) for count in (0, 3, 10**6)]
    assert [(said[0], len(content)) for said, content in answers] == [
        ({"bytes": count, "file": "ä\n"}, count) for count in (0, 3, 10**6)
    ]
    (process,) = {said[1] for said, _ in answers}
    assert process != os.getpid()


@pytest.mark.parametrize(
    ("question", "limit_s", "said"),
    [("abort", 60, "ended by"), ("hang", 1, r"not done in 1 s of a processor")],
)
def test_what_ends_or_stops_the_process_costs_one_answer(
    question: str, limit_s: float, said: str, module: str
) -> None:
    for _ in range(2):
        with pytest.raises(Lost, match=said):
            ask(module, question, limit_s)
        assert ask(module, {"bytes": 2}, 60)[1] == b"\n\n"


def test_time_in_which_it_waits_or_is_stopped_counts_for_no_limit(module: str) -> None:
    assert ask(module, {"sleep_s": 1.5}, 1)[1] == b""


@pytest.mark.waits
def test_a_process_that_hangs_outlives_who_asked_it_by_its_limit_at_most(module: str) -> None:
    program = f"""
from sltt_bench.data.beside import ask
print(ask({module!r}, {{}}, 2)[0][1], flush=True)
ask({module!r}, "hang", 2)
"""
    path = os.pathsep.join(sys.path)
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    ) as asking:
        assert asking.stdout is not None
        process = int(asking.stdout.readline())
        time.sleep(0.5)
        asking.kill()
    wait_for_end(process)


def test_a_process_that_cannot_be_started_is_no_fault_of_a_file() -> None:
    with pytest.raises(
        DataError, match=r"could not be started: it was ended by exit code 1; `.* -m no_such_"
    ):
        ask("no_such_module", {}, 60)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not copied here")
def test_a_copy_of_this_process_has_one_of_its_own(module: str) -> None:
    program = f"""
import json, os
from sltt_bench.data.beside import ask
before = ask({module!r}, {{"bytes": 0}}, 60)[0][1]
read, write = os.pipe()
if not os.fork():
    os.write(write, str(ask({module!r}, {{"bytes": 0}}, 60)[0][1]).encode())
    os._exit(0)
os.wait()
print(json.dumps([before, int(os.read(read, 20)), ask({module!r}, {{"bytes": 0}}, 60)[0][1]]))
"""
    path = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    before, of_copy, after = json.loads(done.stdout)
    assert before == after != of_copy
    wait_for_end(before, of_copy)


def wait_for_end(*processes: int) -> None:
    deadline = time.monotonic() + 20
    while any(_is_alive(process) for process in processes):
        assert time.monotonic() < deadline, "a process outlives who started it"
        time.sleep(0.05)


def _is_alive(process_id: int) -> bool:
    try:
        return psutil.Process(process_id).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
