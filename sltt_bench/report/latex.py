"""Tables as LaTeX (booktabs), one file each, for \\input in a paper."""

from sltt_bench.report.document import Cell, Table

_SPECIAL = {
    "\\": r"\textbackslash{}",
    **{mark: "\\" + mark for mark in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "÷": r"$\div$",
    "×": r"$\times$",
    "±": r"$\pm$",
    "−": r"$-$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "µ": r"$\mu$",
    "–": "--",
    "·": r"$\cdot$",
    "‖": r"$\Vert$",
    "τ": r"$\tau$",
    "λ": r"$\lambda$",
    "→": r"$\rightarrow$",
    **{mark: f"$^{digit}$" for digit, mark in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")},
}


def table(block: Table, conditions: str) -> str:
    """A `table` environment; needs \\usepackage{booktabs}. `conditions` ends the caption."""
    columns = "".join("r" if heading.numeric else "l" for heading in block.headings)
    headings = [escape(f"{h.text} [{h.unit}]" if h.unit else h.text) for h in block.headings]
    lines = [
        "% Made by sltt-bench report; needs \\usepackage{booktabs}.",
        "\\begin{table}",
        "  \\centering",
        f"  \\caption{{{escape(f'{block.title}. {conditions}'.strip())}}}",
        f"  \\label{{tab:{block.name}}}",
        f"  \\begin{{tabular}}{{{columns}}}",
        "    \\toprule",
        f"    {' & '.join(headings)} \\\\",
        "    \\midrule",
        *(f"    {' & '.join(_cell(cell) for cell in row)} \\\\" for row in block.rows),
        "    \\bottomrule",
        "  \\end{tabular}",
        *(f"  % {note}" for note in block.notes),
        "\\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _cell(cell: Cell) -> str:
    detail = f" {{\\small {escape(cell.detail)}}}" if cell.detail else ""
    return escape(cell.text) + detail


def escape(text: str) -> str:
    """The text with LaTeX's special characters and the report's signs written out."""
    return "".join(_SPECIAL.get(mark, mark) for mark in text)
