r"""Tables as LaTeX (booktabs, graphicx), one file each, for \input in a paper."""

from itertools import pairwise

from sltt_bench.report.document import Table, TableCell

_SPECIAL = {
    "\\": r"\textbackslash{}",
    **{mark: "\\" + mark for mark in "&%$#_{}"},
    "\n": " ",  # two would end a caption's paragraph, and LaTeX with it
    "<": r"\textless{}",  # the usual font has an inverted exclamation mark there, and a dash for a bar
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
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
    """A `table` environment, scaled down where it is wider than the text. `conditions` ends the caption.

    Needs the packages booktabs and graphicx. Notes stand below the table, outside the scaling.
    """
    sides = ["r" if heading.numeric else "l" for heading in block.headings]
    rows = [
        [_cell(cell, side, stacked=not block.secondary) for cell, side in zip(row, sides, strict=True)]
        for row in block.rows
    ]
    # After a row's end a bracket would be taken for an amount of room, and a star for a command's.
    rows = [["{}" * row[0].startswith(("[", "*")) + row[0], *row[1:]] for row in rows]
    headings = [escape(f"{h.text} [{h.unit}]" if h.unit else h.text) for h in block.headings]
    caption_end = f" {conditions[0].upper()}{conditions[1:]}." if conditions else ""
    lines = [
        "% Made by sltt-bench report; needs \\usepackage{booktabs,graphicx}.",
        "\\begin{table}",
        "  \\centering",
        f"  \\caption{{{escape(f'{block.title}.{caption_end}')}}}",
        f"  \\label{{tab:{block.name}}}",
        "  \\resizebox{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}{!}{%",
        f"  \\begin{{tabular}}{{{''.join(sides)}}}",
        "    \\toprule",
        f"    {' & '.join(headings)} \\\\",
        "    \\midrule",
        *(f"    {' & '.join(row)} \\\\" for row in rows),
        "    \\bottomrule",
        "  \\end{tabular}}",
        *(f"  \\par\\raggedright\\footnotesize {escape(note)}" for note in block.notes),
        "\\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _cell(cell: TableCell, side: str, *, stacked: bool) -> str:
    """The text with its detail below it, or beside it in a table of many rows."""
    text, detail = escape(cell.text), escape(cell.detail)
    if not detail:
        return text
    if not stacked:
        return f"{text} {{\\small {detail}}}"
    return f"\\begin{{tabular}}[t]{{@{{}}{side}@{{}}}}{text}\\\\{{\\small {detail}}}\\end{{tabular}}"


def escape(text: str) -> str:
    """The text with LaTeX's special characters and the report's signs written out; two hyphens stay two."""
    pairs = pairwise(f"{text} ")
    return "".join(
        "-{}" if mark == following == "-" else _SPECIAL.get(mark, mark) for mark, following in pairs
    )
