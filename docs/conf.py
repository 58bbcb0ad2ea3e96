"""Sphinx builds the site from these pages, the command line's own declarations and the code's docstrings.

`make docs` builds it, and a broken link is an error. Neither the build nor a page asks another host.
"""

import functools
import re
import subprocess
import sys
from pathlib import Path

from sphinx.errors import ExtensionError

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

project = "ctclip-rebuild"
copyright = "2026, the ctclip-rebuild authors"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
myst_heading_anchors = 4
default_role = "code"  # docstrings write `name`, as Markdown does
autodoc_member_order = "bysource"
html_theme = "furo"
html_title = project
html_copy_source = False

# Pages that show a file from above this folder. Links to the file lead to its page.
SHOWN = {"../benchmarks/RESULTS.md": "results.md", "../CHANGELOG.md": "changelog.md"}
COMMANDS = "<!-- Typer writes the commands here when the site is built. -->\n"

OUTSIDE = re.compile(r'<(?:script|link|img|iframe)\b[^>]*(?:src|href)="(?:https?:)?//[^"]*"')


@functools.cache
def describe_commands():
    """Markdown of every command with its arguments and options, by Typer."""
    command = [sys.executable, "-m", "typer", "flows.cli", "utils", "docs", "--name", "ctclip"]
    written = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return written[written.index("\n## ") :].replace("* `--help`: Show this message and exit.\n", "")


def prepare_page(app, page, source):
    """Puts the commands into their page, and mends links to files that are shown by a page."""
    above = "../" * page.count("/")
    for file, shown in SHOWN.items():
        source[0] = source[0].replace(f"]({above}{file}", f"]({above}{shown}")
    if COMMANDS in source[0]:
        source[0] = source[0].replace(COMMANDS, describe_commands())


def refuse_outside_requests(app, error):
    """Raises `ExtensionError` if a page would load a script, style, image or font from another host."""
    for page in Path(app.outdir).rglob("*.html") if error is None else ():
        if found := OUTSIDE.search(page.read_text()):
            raise ExtensionError(f"{page.name} asks another host: {found[0]}")


def setup(app):
    app.connect("source-read", prepare_page)
    app.connect("build-finished", refuse_outside_requests)
