"""Renders a page with Chromium: in a window, in a window with the print style, and on sheets of paper."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
needs_paper = pytest.mark.skipif(
    CHROMIUM is None or shutil.which("pdftotext") is None, reason="Chromium or pdftotext is not installed"
)

A4_WIDTH = 703
"""Width between the margins of an upright sheet, in CSS pixels."""


def _run(folder: Path, source: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
        f"--user-data-dir={folder / 'profile'}", *options, source.as_uri(),
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def measured(page: str, width: int, folder: Path, script: str) -> tuple[dict[str, Any], str]:
    """Returns what `script` returns for a page in a window of this width, and the browser's complaints.

    `script` is the body of a JavaScript function of (frame, page).
    """
    harness = folder / "harness.html"
    frame = f'<iframe style="border:0" width="{width}" height="900" srcdoc="{html.escape(page)}"></iframe>'
    probe = f"""<script>
    const probe = (frame, page) => {{ {script} }};
    addEventListener("load", () => {{
      const frame = document.querySelector("iframe");
      document.title = JSON.stringify(probe(frame, frame.contentDocument));
    }});
    </script>"""
    harness.write_text(f"<!doctype html><meta charset=utf-8><title></title>{frame}{probe}")
    done = _run(
        folder, harness, "--enable-logging=stderr", "--window-size=1400,1000", "--virtual-time-budget=5000",
        "--dump-dom",
    )  # fmt: skip
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title
    complaints = "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)
    return json.loads(html.unescape(title[1])), complaints


def with_style_of_print(page: str) -> str:
    """Returns the page with the print style applied in a window."""
    return page.replace("@media screen ", "@media speech ").replace("@media print ", "@media all ")


def sheets(page: str, folder: Path) -> list[list[str]]:
    """Returns the lines of each A4 sheet of the printed page, with single spaces between words."""
    source, pdf = folder / "printed.html", folder / "printed.pdf"
    source.write_text(page.replace("@page {", "@page { size: A4;"))
    _run(folder, source, "--no-pdf-header-footer", f"--print-to-pdf={pdf}")
    done = subprocess.run(
        ["pdftotext", "-layout", str(pdf), "-"], capture_output=True, text=True, timeout=120, check=True
    )
    printed = [
        [" ".join(line.split()) for line in sheet.splitlines() if line.strip()]
        for sheet in done.stdout.split("\f")
    ]
    return [sheet for sheet in printed if sheet]
