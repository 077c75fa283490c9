"""Plug-ins that fail: they are named, and everything that is shipped goes on working."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from sltt_bench import backends, data, methods, models
from sltt_bench.command_line.cli import app
from sltt_bench.common.plugins import PluginFailed
from sltt_bench.planning.recipe import load_recipe
from sltt_bench.planning.recipe_faults import RecipeError

MODULES = {
    "raises": "raise RuntimeError('no [bold]such[/bold] card')",
    "imports": "import package_that_nobody_has",
    "exits": "import sys; sys.exit('goodbye')",
    "exits_well": "import sys; sys.exit(0)",
    "syntax": "def (",
    "prints": 'print(\'{"event": "finished"}\')\nclass Options: pass\nbuild = load = model_validate = None',
    "empty": "",
    "recurses": "def f(): f()\nf()",
    "changes": "import torch; torch.set_default_dtype(torch.float64); torch.use_deterministic_algorithms(True)",
}
"""Module of the plug-in → its text; each is registered in all four groups by the module's name."""
BROKEN = [name for name in MODULES if name not in ("prints", "empty", "changes")]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """All of them installed, beside one without a target and one whose name is no regular expression."""
    info = tmp_path / "hostile_plugins-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: hostile-plugins\nVersion: 1.0\n")
    lines = []
    for group in ("methods", "models", "data", "backends"):
        lines.append(f"[sltt_bench.{group}]")
        lines += [f"{name} = hostile_{name}" for name in MODULES]
        lines += [
            "missing = hostile_empty:nothing_here",
            "( = hostile_empty",
            "bptt = hostile_raises",
            "digits = hostile_raises",
        ]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    for name, text in MODULES.items():
        (tmp_path / f"hostile_{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, f"hostile_{name}", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    torch.set_default_dtype(torch.float32)  # one of them changes these
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("site")
def test_what_is_shipped_is_listed_and_loads_beside_broken_plugins() -> None:
    assert load_recipe("digits").name == "digits"
    assert methods.create("bptt", 6)
    listed = CliRunner().invoke(app, ["list"])
    assert listed.exit_code == 0, listed.output
    text = " ".join(listed.output.split())
    for name in ("sltt-kN", "preact-resnet18", "cifar10", "native"):
        assert name in text
    assert (
        "plug-in 'raises' (hostile_raises) of the package 'hostile-plugins' cannot be loaded (RuntimeError"
        in text
    )
    assert "no [bold]such[/bold] card" in text
    assert CliRunner().invoke(app, ["--help"]).exit_code == 0
    assert CliRunner().invoke(app, ["run", "digits", "--dry-run"]).exit_code == 0


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize("name", [*BROKEN, "missing"])
def test_a_plugin_that_cannot_be_loaded_is_named_with_its_package(name: str) -> None:
    wanted = rf"plug-in '{name}' \(hostile_\w+(:\w+)?\) of the package 'hostile-plugins' cannot be loaded"
    with pytest.raises(PluginFailed, match=wanted):
        models.options_type(name)
    with pytest.raises(PluginFailed, match=wanted):
        data.source_type(name)
    with pytest.raises(PluginFailed, match=wanted):
        backends.create(name)
    with pytest.raises(methods.UnknownMethod, match=wanted):
        methods.check(name, 6)
    with pytest.raises(RecipeError, match=wanted) as caught:
        load_recipe("digits", {"model.name": name, "data.name": name, "train.lr": -1})
    assert len(caught.value.faults) == 3
    result = CliRunner().invoke(app, ["run", "digits", "--method", name])
    assert result.exit_code == 2
    assert "pip uninstall hostile-plugins" in result.output


@pytest.mark.usefixtures("site")
def test_a_plugin_without_what_it_must_have_is_named() -> None:
    with pytest.raises(PluginFailed, match="has no Options and no build"):
        models.options_type("empty")
    with pytest.raises(PluginFailed, match="has no load and no model_validate"):
        data.source_type("empty")
    with pytest.raises(methods.UnknownMethod, match=r"'empty'.*not callable"):
        methods.check("empty", 6)


@pytest.mark.usefixtures("site")
def test_a_plugin_that_changes_what_others_are_measured_with_is_refused() -> None:
    with pytest.raises(
        PluginFailed, match="'hostile-plugins' changes torch's default dtype and whether torch's"
    ):
        backends.create("changes")


@pytest.mark.usefixtures("site")
def test_no_plugin_takes_the_place_of_what_is_shipped() -> None:
    for names in (models.names(), data.names(), backends.names()):
        assert len(names) == len(set(names))
    assert type(methods.create("bptt", 6)).__module__.startswith("sltt_bench.")
    assert data.source_type("digits").__module__.startswith("sltt_bench.")


def test_what_a_plugin_prints_does_not_reach_standard_output(site: Path) -> None:
    code = "from sltt_bench import models; models.options_type('prints')"
    path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
        check=True,
    )
    assert done.stdout == ""
    assert "finished" in done.stderr
