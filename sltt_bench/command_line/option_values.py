"""The words of command-line options turned into values. Raises UserError for a word that is none."""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from sltt_bench.common.errors import UserError, shortened_text

if TYPE_CHECKING:
    from sltt_bench.planning.plan import Plan, Request
    from sltt_bench.running.lanes import Place

Setting = tuple[str, str]
"""key=value as the recipe has it, and how errors name the option that sets it."""


def make_request(
    method: str | None,
    backend: str,
    seed: str | None,
    grid: Sequence[Setting],
    device: str,
    **further: Any,
) -> "Request":
    """What is asked for, its words checked; `further` are fields of Request as they are."""
    from sltt_bench import methods
    from sltt_bench.planning.overrides import parse_overrides
    from sltt_bench.planning.plan import Request

    chosen = comma_list("--method", method)
    for name in chosen or ():
        try:
            methods.promises(name)
        except methods.UnknownMethod as error:
            raise UserError(f"--method {name}: {error}") from None
    origins = {text.partition("=")[0].strip(): option for text, option in grid}
    for option, key, given in (("--seed", "seeds", seed), ("--method", "methods", method)):
        if given is not None and key in origins:
            raise UserError(f"{origins[key]} and {option} say the same; give one of them")
    return Request(
        methods=chosen,
        backends=tuple(comma_list("--backend", backend) or ()),
        seeds=parse_seeds(seed),
        grid=tuple(parse_overrides([text for text, _ in grid], [option for _, option in grid])),
        origins=origins,
        device=parse_device(device),
        **further,
    )


def where_to_run(
    device: str, jobs: int | None, devices: str | None, plans: Sequence["Plan"] = (), *, crowd: bool
) -> list["Place"]:
    """Where the cells of `plans` run; with `crowd`, more at once than the machine can bear."""
    from sltt_bench.planning.plan import processes_per_cell
    from sltt_bench.running.jobs import make_places

    per_cell = processes_per_cell(plans)
    return make_places(device, jobs, parse_devices(devices), per_cell=per_cell, oversubscribe=crowd)


def comma_list(option: str, text: str | None) -> list[str] | None:
    """The parts of an option's comma list; None where it was not given. An empty one is no way to leave it out."""
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise UserError(f"{option} {text!r}: is an empty list; name something, or leave {option} out")
    return parts


def parse_seeds(text: str | None) -> list[int] | None:
    """--seed: a comma list of seeds, each once; None where it was not given."""
    from sltt_bench.planning.recipe_fields import MAX_SEED

    parts = comma_list("--seed", text)
    if parts is None:
        return None
    if not all(re.fullmatch(r"[-+]?[0-9]{1,4000}", part) for part in parts):
        raise UserError(f"--seed {text}: seeds are whole numbers, e.g. --seed 0,1,2")
    seeds = [int(part) for part in parts]
    if not all(0 <= seed <= MAX_SEED for seed in seeds):
        raise UserError(f"--seed {text}: a seed is from 0 to 2**32 - 1")
    return list(dict.fromkeys(seeds))


def fields_set(
    assignments: list[str] | None,
    full_paths: Callable[[list[str], str], list[str]] = lambda texts, option: texts,
    option: str = "--set",
) -> list[Setting]:
    """The fields that an option sets, by their `full_paths`; of each the option and the key as typed."""
    texts = assignments or []
    typed = [f"{option} {shortened_text(text.partition('=')[0].strip(), 80)}".rstrip() for text in texts]
    return list(zip(full_paths(texts, option), typed, strict=True))


def parse_counts(option: str, key: str, text: str | None) -> list[Setting]:
    """An option's comma list of whole numbers from 1 on, as the override of a recipe field."""
    parts = comma_list(option, text)
    if parts is None:
        return []
    if not all(re.fullmatch(r"0*[1-9][0-9]{0,8}", part) for part in parts):
        raise UserError(f"{option} {text}: wants whole numbers from 1 on, e.g. {option} 1,2,4")
    return [(f"{key}={','.join(parts)}", option)]


def processes_field(per_cell: int | None) -> list[Setting]:
    """--nproc-per-cell as the override of its recipe field."""
    return [] if per_cell is None else [(f"train.devices={per_cell}", "--nproc-per-cell")]


def sbatch_options(texts: Iterable[str]) -> dict[str, str]:
    """--slurm as sbatch's option → value ("" for one without), none of them set in another way too."""
    of_submit = ("time", "partition", "nodes", "gpus-per-node", "cpus-per-task", "mem")
    fixed = ("job-name", "ntasks-per-node", "signal", "output", "error", "array", "dependency")
    options: dict[str, str] = {}
    for text in texts:
        name, _, value = text.strip().lstrip("-").partition("=")
        name = name.replace("_", "-")
        if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
            raise UserError(
                f"--slurm {text!r}: wants an option of sbatch by its long name, e.g. account=NAME or exclusive"
            )
        if name in of_submit:
            raise UserError(f"--slurm {text}: `submit` has this option itself: --{name}")
        if name in fixed:
            raise UserError(f"--slurm {text}: {name} is what holds a submission together; leave it out")
        if options.get(name, value) != value:
            raise UserError(f"--slurm {text}: {name} is given twice; give it once")
        options[name] = value
    return options


def parse_effects(text: str) -> list[float]:
    """A comma list of sizes above 0, each once."""
    try:
        effects = [float(part) for part in comma_list("--effect", text) or ()]
    except ValueError:
        effects = []
    if not effects or not all(0 < effect < 1000 for effect in effects):
        raise UserError(f"--effect {text}: wants numbers above 0 and below 1000, e.g. --effect 0.5,1")
    return list(dict.fromkeys(effects))


def parse_seconds(text: str | None, option: str = "--timeout") -> float | None:
    """A time such as 90s, 30m or 2h in seconds, which are meant without a unit; None where it was not given."""
    if text is None:
        return None
    units = {"s": 1, "m": 60, "h": 3600}
    number, unit = (text[:-1], text[-1]) if text[-1:] in units else (text, "s")
    try:
        seconds = float(number) * units[unit]
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < math.inf:
        raise UserError(f"{option} {text}: write a number with s, m or h, e.g. 90s, 30m, 2h")
    return seconds


def parse_device(text: str) -> str:
    """--device: the word itself, if it is one of a device."""
    if text in ("auto", "cpu", "cuda") or re.fullmatch(r"cuda:[0-9]+", text):
        return text
    raise UserError(f"--device {text}: known are auto, cpu, cuda and cuda:N")


def parse_devices(text: str | None) -> list[str]:
    """--devices: a comma list of devices; empty where it was not given."""
    devices = comma_list("--devices", text)
    if devices is None:
        return []
    if not all(name == "cpu" or re.fullmatch(r"cuda:[0-9]+", name) for name in devices):
        raise UserError(f"--devices {text}: wants a comma list of cuda:N, e.g. cuda:0,cuda:1")
    return devices
