"""Writes a new recipe to start from: a copy of another, with the meaning of each key above it."""

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from sltt_bench.common.yaml_text import dump_yaml
from sltt_bench.planning import recipe_schema
from sltt_bench.planning.recipe import load_recipe, recipe_from_dict
from sltt_bench.planning.recipe_faults import RecipeError
from sltt_bench.planning.recipe_fields import OF_ONE_EXPERIMENT, Recipe

HEAD = """\
# yaml-language-server: $schema={schema}
# {name}: say here what this experiment is to find out.
#
#   sltt-bench run {file} --smoke       tries it in seconds
#   sltt-bench run {file}
#
# Every key of the recipe `{source}` with its meaning. A key that has a
# default may go. A file that says `extends: {source}` needs only what
# differs from it. The claims of `{source}` are about that experiment, so
# they are not here; `sltt-bench show {source}` shows how one is written.
"""


def write_template(path: Path, source: str) -> list[Path]:
    """Write the recipe `source` (a name or a file) to `path` with comments, and the schema beside it.

    Returns the files written. Raises RecipeError if `path` exists or its name is not allowed for recipes.
    """
    if not path.name:
        raise RecipeError(str(path), ["is no name of a file"])
    if path.suffix not in (".yaml", ".yml"):
        path = path.with_name(f"{path.name}.yaml")
    if path.exists():
        raise RecipeError(str(path), ["exists; choose another name, or remove it first"])
    recipe = load_recipe(source)
    recipe_from_dict(recipe.model_dump(mode="json") | {"name": path.stem})
    schema = path.with_name(recipe_schema.FILE)
    written = [path]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(template(recipe, path), encoding="utf-8")
        if not schema.exists():
            schema.write_text(recipe_schema.text(), encoding="utf-8")
            written.append(schema)
    except OSError as error:
        raise RecipeError(str(path), [f"cannot be written: {error.strerror or error}"]) from None
    return written


def template(recipe: Recipe, path: Path) -> str:
    """Returns the text of a file that resolves like `recipe`, except for what is true of that one alone."""
    head = HEAD.format(schema=recipe_schema.FILE, name=path.stem, file=path.name, source=recipe.name)
    own = recipe.model_copy(update=dict(OF_ONE_EXPERIMENT))
    return head + "\n" + "\n".join(_commented(own, indent=""))


def _commented(options: BaseModel, indent: str) -> Iterator[str]:
    """Yields the lines of a section: for each key, its description, then key and value."""
    for key, field in type(options).model_fields.items():
        if not indent and key == "name":  # it is the file's
            continue
        comment = " ".join((field.description or "").split())
        yield from textwrap.wrap(comment, 79, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")
        value = getattr(options, key)
        if isinstance(value, BaseModel):
            yield f"{indent}{key}:"
            yield from _commented(value, indent + "  ")
        else:
            yield from (f"{indent}{line}" for line in dump_yaml({key: _plain(value)}).splitlines())
        if not indent:
            yield ""


def _plain(value: Any) -> Any:
    """Returns a value with its pydantic models, also those in lists, as mappings."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", exclude_defaults=True)
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return value
