"""Recipe files: finding them by name or path, and reading each with those that it extends."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from sltt_bench import methods
from sltt_bench.common.errors import nearest, shortened, shortened_text
from sltt_bench.common.yaml_text import YAMLFault, read_yaml
from sltt_bench.planning.recipe_faults import Files, RecipeError
from sltt_bench.planning.recipe_fields import OF_ONE_EXPERIMENT
from sltt_bench.planning.studies import FOLDER as STUDIES
from sltt_bench.results.schema import RECIPE_FILE

_MAX_EXTENDS = 16


def recipe_folder() -> Path:
    """Where the shipped recipes are: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parent.parent
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


def recipe_names() -> list[str]:
    """The names of all shipped recipes; files that start with an underscore are bases to extend."""
    return sorted(path.stem for path in recipe_folder().glob("*.yaml") if not path.stem.startswith("_"))


def study_names() -> list[str]:
    """The names of all shipped studies, as `run` takes them."""
    return sorted(f"{STUDIES}/{path.stem}" for path in (recipe_folder() / STUDIES).glob("[!_]*.yaml"))


def find_recipe(name_or_path: str) -> Path:
    """The file of a shipped recipe's or study's name, or the given path. Raises RecipeError."""
    of_study = name_or_path.startswith(f"{STUDIES}/")
    if name_or_path.endswith((".yaml", ".yml")) or ("/" in name_or_path and not of_study):
        path = Path(name_or_path)
        if _is_file(path):
            return path
        if _is_folder(path):
            raise RecipeError(name_or_path, ["no such file: it is a folder; give a recipe's file"])
        hint = ""
        if path.parent.name == STUDIES and f"{STUDIES}/{path.stem}" in study_names():
            hint = f" (the shipped study is called {STUDIES}/{path.stem}, without ending)"
        elif path.stem in recipe_names():
            hint = f" (the shipped recipe is called {path.stem}, without folder and ending)"
        else:
            with suppress(OSError, ValueError):  # where it cannot even be a path
                hint = nearest(path.name, [file.name for file in path.parent.glob("*.y*ml")])
        fault = f"no such file{hint}; `sltt-bench list recipes` shows the names"
        raise RecipeError(name_or_path, [fault])
    path = recipe_folder() / f"{name_or_path}.yaml"
    names = study_names() if of_study else recipe_names()
    if name_or_path in names or (not of_study and _is_file(path)):
        return path
    with suppress(methods.UnknownMethod):
        methods.promises(name_or_path)
        raise RecipeError(name_or_path, [f"is a method: `sltt-bench run RECIPE --method {name_or_path}`"])
    what, all_of_them = ("study", "studies") if of_study else ("recipe", "recipes")
    ending = ", and a recipe's file ends with .yaml" if _is_file(Path(name_or_path)) else ""
    hint = nearest(name_or_path, names)
    if _is_file(Path(f"{name_or_path}.yaml")):
        hint, ending = "", f", but a file has: give it with its ending, {name_or_path}.yaml"
    if f"{STUDIES}/{name_or_path}" in study_names():
        hint, ending = f" (did you mean the study '{STUDIES}/{name_or_path}'?)", ""
    if "," in name_or_path:
        hint, ending = "", "; several are given with spaces between them"
    fault = f"no {what} has this name{hint}{ending}; `sltt-bench list {all_of_them}` shows all"
    raise RecipeError(name_or_path, [fault])


def namesake(name_or_path: str) -> str | None:
    """That a shipped recipe is meant where a file at hand is called like it, in words; None where none is."""
    file = Path(f"{name_or_path}.yaml")
    if not _is_file(file) or file.resolve() == find_recipe(name_or_path).resolve():
        return None
    return f"{name_or_path} is the shipped recipe; the file {file} is given with its ending"


def beside(file: Path, name: str) -> str:
    """The recipe of this name beside the file that names it; if there is none other than this file, the shipped one."""
    other = file.parent / f"{name}.yaml"
    return str(other) if _is_file(other) and other.resolve() != file.resolve() else name


def _is_file(path: Path) -> bool:
    """Also for a path that no file system takes: too long, or with a NUL."""
    try:
        return path.is_file()
    except OSError:
        return False


def _is_folder(path: Path) -> bool:
    """As `_is_file`."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def read_extended(path: Path, below: tuple[Path, ...] = ()) -> tuple[dict[str, Any], Files]:
    """A file's mapping merged into that of the recipe it extends, and the files; `below` are those that extend it.

    Raises RecipeError.
    """
    where = path.resolve()
    if where in below:
        names = " → ".join(file.name for file in (*below, where))
        raise RecipeError(str(path), [f"extends itself: {shortened_text(names, 300)}"])
    if len(below) == _MAX_EXTENDS:
        raise RecipeError(str(path), [f"the {_MAX_EXTENDS}th recipe in a chain of extends: too many"])
    try:
        raw = read_yaml(path)
    except OSError as error:
        raise RecipeError(str(path), [f"cannot be read: {error.strerror or error}"]) from None
    except YAMLFault as error:
        raise RecipeError(str(path), error.faults) from None
    if not isinstance(raw, dict):
        raise RecipeError(str(path), ["must be a mapping of keys to values at the top level"])
    name = raw.pop("name", path.stem)
    if path.name == RECIPE_FILE and not below:
        raw["name"] = name  # as the run was called that wrote it
    elif name not in (path.stem, f"{STUDIES}/{path.stem}"):
        fault = f"name: a recipe's name is that of its file; leave {shortened(name)} out, or save the file as {shortened(name)}.yaml"
        raise RecipeError(str(path), [fault])
    base = raw.pop("extends", None)
    own = (path, dict(raw))
    if base is None:
        return raw, [own]
    if not isinstance(base, str):
        raise RecipeError(str(path), [f"extends: must be one recipe's name, but it is {shortened(base)}"])
    other = beside(path, base)
    base_path = recipe_folder() / f"{base}.yaml" if other == base else Path(other)
    if not _is_file(base_path):
        base_path = path.parent / f"{base}.yaml"  # the file itself, if any
    if not _is_file(base_path):
        known = [*(file.stem for file in path.parent.glob("*.yaml")), *recipe_names(), *study_names()]
        hint = nearest(Path(base).stem, known) or "; a recipe is named without folder and ending"
        fault = f"extends: no recipe {shortened(base)} beside this file or among the shipped{hint}"
        raise RecipeError(str(path), [fault])
    extended, files = read_extended(base_path, (*below, where))
    for of_another_experiment in OF_ONE_EXPERIMENT:
        extended.pop(of_another_experiment, None)
    if are_other_data(raw.get("data"), extended.get("data")):
        extended = _without_facts_of_data(extended)
    return _merged(extended, raw), [own, *files]


def are_other_data(own: Any, base: Any) -> bool:
    """Whether a section `data` says of which data it is, and not what a base's does."""
    if not isinstance(own, dict) or not isinstance(base, dict):
        return False
    return any(key in own and own[key] != base.get(key) for key in ("name", "file", "folder"))


def _without_facts_of_data(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Without the accuracy that counts as reached, and the counts of validation samples: other data have others."""
    result = {key: value for key, value in raw.items() if key != "target"}
    for path in (("validation",), ("tuning", "validation")):
        place: Any = result
        for part in path:
            if not isinstance(place.get(part), dict):
                break
            place[part] = dict(place[part])
            place = place[part]
        else:
            if "samples" in place:
                place["samples"] = 0
    return result


def _merged(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    """Mappings are merged key by key; anything else is replaced, and so are `smoke` and a grid, which are values. A new
    `name` replaces a section."""
    result = dict(base)
    for key, value in top.items():
        below = result.get(key)
        if (
            isinstance(below, dict)
            and isinstance(value, dict)
            and key not in ("smoke", "grid")
            and below.get("name") == value.get("name", below.get("name"))
        ):
            result[key] = _merged(below, value)
        else:
            result[key] = value
    return result
