"""Hooks of mkdocs.yml: pages that are made from the code or stand outside docs/, and links that leave the site."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from sltt_bench import methods
from sltt_bench.methods import METHODS, MethodEntry
from sltt_bench.planning.recipe_schema import recipe_schema

ROOT = Path(__file__).parent.parent
OUTSIDE = {
    "README.md": "index.md",
    "results/README.md": "format.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
"""Markdown of the repository → its page."""


def on_config(config: Any) -> Any:
    """Pages that nav does not name stand at its end."""
    named = set(re.findall(r"[\w-]+\.md", json.dumps(config.nav)))
    others = sorted(path.name for path in (ROOT / "docs").glob("*.md") if path.name not in named)
    if others:
        config.nav.append({"More": others})
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are no files of docs/."""
    pages = {page: (ROOT / source).read_text(encoding="utf-8") for source, page in OUTSIDE.items()}
    pages["recipes.md"] = "\n".join(recipe_reference(recipe_schema()))
    pages["command-line.md"] = command_line_reference()
    pages["equations.md"] = "\n".join(equations())
    sources = {page: source for source, page in OUTSIDE.items()}
    for page, text in pages.items():
        if page in sources:
            text = with_links_of_the_site(text, (ROOT / sources[page]).parent)
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links of a page of docs/ that lead out of it."""
    return markdown if page.file.generated_by else with_links_of_the_site(markdown, ROOT / "docs")


def with_links_of_the_site(markdown: str, folder: Path) -> str:
    """Links of a file in `folder` as the site has them; what is no page of it becomes plain text."""

    def replaced(match: re.Match[str]) -> str:
        image, text, target = match.groups()
        if target.startswith(("http", "#")):
            return match[0]
        name, hash_sign, heading = target.partition("#")
        path = (folder / name).resolve().relative_to(ROOT)
        if path.parts[0] == "docs":
            return f"{image}[{text}]({Path(*path.parts[1:])}{hash_sign}{heading})"
        if str(path) in OUTSIDE:
            return f"{image}[{text}]({OUTSIDE[str(path)]}{hash_sign}{heading})"
        return text

    return re.sub(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)", replaced, markdown)


def command_line_reference() -> str:
    """Every verb with its options, from Typer itself."""
    command = [
        sys.executable,
        "-m",
        "typer",
        "sltt_bench.command_line.cli",
        "utils",
        "docs",
        "--name",
        "sltt-bench",
    ]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return text.replace("# `sltt-bench`", "# Command line", 1)


def equations() -> Iterator[str]:
    """Every training rule's equations, source and deviations: the docstring of its file."""
    yield "# The training rules' equations\n"
    yield "Of each file in `sltt_bench/methods`, what it computes and from where it is; `sltt-bench show NAME` prints the same."
    yield "u is the membrane potential before the reset, v after it, s the spikes, I the input current, o the output, L the loss.\n"
    by_module: dict[str, list[MethodEntry]] = {}
    for entry in METHODS.values():
        by_module.setdefault(entry.module, []).append(entry)
    for entries in by_module.values():
        yield f"\n## {', '.join(entry.label for entry in entries)}\n"
        yield methods.explanation(re.sub(r"[NX]", "1", entries[0].label))
        for entry in entries:
            yield f"\n`{entry.label}`: {entry.summary}; memory {entry.promises.memory}."


def recipe_reference(schema: Mapping[str, Any]) -> Iterator[str]:
    """Every key of a recipe: its type, default and meaning, from the schema that editors use."""
    yield "# Recipes\n"
    yield "Every key of a recipe file, made from the classes that check it. `sltt-bench init NAME` writes one to start"
    yield "from; `sltt-bench schema` prints the JSON schema that editors complete and validate with.\n"
    yield from _table(schema["properties"], schema)
    for key, value in schema["properties"].items():
        for title, section in _sections(key, value, schema):
            yield f"\n## {title}\n\n{section.get('description', '')}\n"
            yield from _table(section["properties"], schema)


def _sections(key: str, value: Mapping[str, Any], schema: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """(title, schema) of what stands below a key: one section, or one for each name that it may have."""
    target = _referred(value.get("items", value), schema)
    if "allOf" in target:
        for choice in target["allOf"]:
            yield f"{key}: {choice['if']['properties']['name']['const']}", choice["then"]
    elif "properties" in target:
        yield key, target


def _table(properties: Mapping[str, Any], schema: Mapping[str, Any]) -> Iterator[str]:
    yield "| key | type | default | meaning |"
    yield "|---|---|---|---|"
    for key, value in properties.items():
        default = value.get("default")
        shown = "" if default in (None, []) or isinstance(default, dict) else f"`{json.dumps(default)}`"
        meaning = " ".join(str(value.get("description", "")).split()).replace("|", "\\|")
        yield f"| `{key}` | {_type(value, schema)} | {shown} | {meaning} |"


def _type(value: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    value = _referred(value, schema)
    if "anyOf" in value:
        return " or ".join(dict.fromkeys(_type(choice, schema) for choice in value["anyOf"]))
    if "enum" in value or "const" in value:
        return ", ".join(f"`{choice}`" for choice in value.get("enum", [value.get("const")]))
    kind = str(value.get("type", "any"))
    if kind == "array":
        return f"list of {_type(value['items'], schema)}"
    limits = [f"{sign} {value[name]:,}" for name, sign in _LIMITS.items() if name in value]
    return " ".join([{"object": "mapping"}.get(kind, kind), ", ".join(limits)]).strip()


_LIMITS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def _referred(value: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    name = str(value.get("$ref", "")).rpartition("/")[2]
    return {**schema["$defs"][name], **value} if name else value
