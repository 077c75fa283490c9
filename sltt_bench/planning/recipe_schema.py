"""Makes a JSON schema of recipe files from the classes that validate them, for editors.

It holds the meaning, type, range and choices of each key. `sltt-bench show` checks what only a whole recipe
tells: keys that a base supplies, T against K, a surrogate's name from a plug-in.
"""

import json
from typing import Any

from pydantic import BaseModel

from sltt_bench import data, models
from sltt_bench.planning.recipe_fields import Recipe

FILE = "recipe.schema.json"
"""The schema's file, next to the recipes; `sltt-bench schema > recipes/recipe.schema.json` makes it."""
DIALECT = "https://json-schema.org/draft/2020-12/schema"


def recipe_schema() -> dict[str, Any]:
    """Returns the schema, including third-party data sets and networks."""
    definitions: dict[str, Any] = {}
    recipe = _definitions_of(Recipe, definitions)
    sections = {
        "data": {name: _definitions_of(data.source_type(name), definitions) for name in data.names()},
        "model": {name: _definitions_of(models.options_type(name), definitions) for name in models.names()},
    }
    properties = recipe["properties"]
    del properties["name"]  # it is the file's
    for section, kinds in sections.items():
        properties[section] = _chosen_by_name(properties[section], kinds)
    properties["extends"] = {
        "type": "string",
        "description": "A recipe, by the name of its file, whose keys this one has where it says nothing else: one "
        "beside this file, or else a shipped one.",
    }
    for unused in ("DataSource", "ModelOptions"):
        definitions.pop(unused, None)
    whole = [key for key in recipe["required"] if key != "name"]
    required = {
        name: definition.pop("required", [])
        for name, definition in definitions.items()
        if name not in ("Claim", "Study", "StudyPanel")
    }
    return {
        "$schema": DIALECT,
        "title": "Recipe of sltt-bench",
        "description": "One experiment: network, data, neuron, loss, training, and the claims to check.",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
        # A base has no description, and a recipe that extends another may leave any key to it.
        "if": {"required": ["description"], "not": {"required": ["extends"]}},
        "then": {
            "required": whole,
            "properties": {key: {"required": ["name"]} for key in sections}
            | {
                key: {"required": required[name]}
                for key, value in properties.items()
                if (name := str(value.get("$ref", "")).rpartition("/")[2]) in required
            },
        },
        "$defs": definitions,
    }


def text() -> str:
    """Returns the schema as the content of its file."""
    return json.dumps(recipe_schema(), indent=1, ensure_ascii=False) + "\n"


def _definitions_of(kind: type[BaseModel], definitions: dict[str, Any]) -> dict[str, Any]:
    """Returns the schema of one class, and adds those of the classes that it uses to `definitions`."""
    schema: dict[str, Any] = _without_titles(kind.model_json_schema())
    definitions |= schema.pop("$defs", {})
    return schema


def _without_titles(schema: Any) -> Any:
    """Returns the schema without titles that pydantic derives from keys; editors show the keys themselves."""
    if isinstance(schema, list):
        return [_without_titles(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: _without_titles(value)
        for key, value in schema.items()
        if key != "title" or not isinstance(value, str)
    }


def _chosen_by_name(section: dict[str, Any], kinds: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Returns a section whose other keys depend on its `name`.

    Without `name`, a base supplies it, so the keys of every kind are allowed.
    """
    every_key: dict[str, Any] = {key: True for kind in kinds.values() for key in kind["properties"]}
    return {
        "type": "object",
        "description": section.get("description", ""),
        "properties": every_key | {"name": {"enum": list(kinds)}},
        "additionalProperties": False,
        "allOf": [
            {
                "if": {"properties": {"name": {"const": name}}, "required": ["name"]},
                "then": {
                    "description": kind.get("description", ""),
                    "properties": kind["properties"],
                    "additionalProperties": False,
                },
            }
            for name, kind in kinds.items()
        ],
    }
