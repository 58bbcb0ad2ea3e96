"""The commands of `ctclip`, by what they are about; each module adds its own to `app`."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from tasks.run.logs import configure_logging

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def common(debug: Annotated[bool, typer.Option("--debug", help="Show logs and tracebacks.")] = False) -> None:
    """Rebuilds CT-CLIP from CT-RATE, end to end, and keeps it rebuilt."""
    if debug:
        os.environ["CTCLIP_DEBUG"] = "1"
    configure_logging()
