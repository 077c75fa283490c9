"""Makes the pictures of docs/ that show figures of the report, from the committed results: python docs/pictures.py.

Those of docs/findings.md are made by docs/findings.py, docs/figures/architecture.svg by docs/architecture.py.
"""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from pkgutil import resolve_name

from sltt_bench.report import SECTIONS
from sltt_bench.report.assemble import assemble
from sltt_bench.report.document import Context, Figure
from sltt_bench.report.plots import style
from sltt_bench.report.render.files import figures_of
from sltt_bench.results.reader import read_results

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docs" / "figures"
PICTURES = {
    "digits-methods.png": ("digits", "digits-T6-b64-fp32-reference-2-methods"),
    "cifar10-resnet18-timesteps.png": ("cifar10-resnet18", "cifar10-resnet18-sweep-timesteps"),
    "imagenet-resnet34-estimated-memory.png": ("imagenet-resnet34", "estimate-imagenet-resnet34-memory"),
    "gradients-resnet18-tau.png": ("cifar10-resnet18", "gradients-cifar10-resnet18-1-tau"),
    "gradients-resnet18-layers.png": ("cifar10-resnet18", "gradients-cifar10-resnet18-1-layers"),
    "gradients-sequential-digits.png": ("sequential-digits", "gradients-sequential-digits-2-course"),
    "gradients-delayed-recall.png": ("delayed-recall", "delayed-recall-sweep-data-delay"),
}
"""Picture → folder below results/, and the figure's name in its report."""


@cache
def figures(recipe: str) -> dict[str, Figure]:
    """Name → figure of the report on a recipe's committed results."""
    context = Context(read_results([ROOT / "results" / recipe]), "bptt")
    report, _ = assemble(context, {kind: resolve_name(where) for kind, where in SECTIONS.items()})
    return {figure.name: figure for figure in figures_of(report)}


def drawn() -> Iterator[tuple[str, bytes]]:
    """Every picture with its content."""
    with style.applied():
        for picture, (recipe, name) in PICTURES.items():
            yield picture, style.files(figures(recipe)[name].draw("double"), ["png"])["png"]


if __name__ == "__main__":
    for picture, content in drawn():
        (FOLDER / picture).write_bytes(content)
