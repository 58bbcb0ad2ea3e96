"""`ctclip`: the flows, the warehouse and your own CT volumes, from a shell.

Commands that run no flow (`status`, `sql`, `predict`, `--help`) never import Prefect, which takes seconds.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable
from importlib import metadata
from typing import Annotated, Any

import typer
from typer.exceptions import TyperException

from ctclip_model.errors import ConfigurationError, CTCLIPError, PreemptedError
from flows.commands import doctor, models, stages, volumes, warehouse
from tasks.run.logs import configure_logging, is_log_requested

logger = logging.getLogger(__name__)

# Commands in the order of the work, under the headings of `ctclip --help`.
PANELS: dict[str, list[Callable[..., None]]] = {
    "Set up": [doctor.doctor, models.fetch_models, models.import_model],
    "Run": stages.list_flow_commands(),
    "Look": [warehouse.status, warehouse.plan, warehouse.sql, warehouse.export],
    "Your own CT": [volumes.predict, volumes.embed_volume],
    "Upkeep": [warehouse.publish, warehouse.gc],
}
app = typer.Typer(
    no_args_is_help=True, add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False
)
for heading, commands in PANELS.items():
    for command in commands:
        app.command(rich_help_panel=heading)(command)


def _print_version(is_given: bool) -> None:
    if is_given:
        from tasks.run.stage_run import code_version

        typer.echo(f"ctclip {metadata.version('ctclip-rebuild')}, commit {code_version()}")
        raise typer.Exit()


@app.callback()
def common(
    debug: Annotated[bool, typer.Option("--debug", help="Show logs and tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Rebuild CT-CLIP from CT-RATE end to end, and keep it up to date."""
    if debug:
        os.environ["CTCLIP_DEBUG"] = "1"
    configure_logging()


def main() -> None:
    """Runs a command. Exit code 0, or 1 with one clear line on stderr. 143: SIGTERM ended a training. 130: Ctrl-C."""
    run: Callable[..., Any] = app
    try:
        sys.exit(run(standalone_mode=False))
    except PreemptedError as error:
        _fail(error, code=128 + signal.SIGTERM)
    except CTCLIPError as error:
        _fail(error)
    except TyperException as error:
        _fail(ConfigurationError(getattr(error, "message", "") or "see ctclip --help"))
    except BrokenPipeError:
        sys.exit(1)
    except (KeyboardInterrupt, typer.Abort):
        print("ctclip: interrupted. A rerun goes on from here", file=sys.stderr)
        sys.exit(130)
    except Exception as error:  # noqa: BLE001  one line on the screen: --debug shows the traceback
        _fail(error, f"{type(error).__name__}: ")


def _fail(error: Exception, prefix: str = "", code: int = 1) -> None:
    if os.environ.get("CTCLIP_DEBUG"):
        raise error
    text = " ".join(str(error).split())
    hint = " (--debug shows the traceback)" if prefix else ""
    if is_log_requested():
        logger.error("%s%s", prefix, text, exc_info=error if prefix else None)
    else:
        print(f"ctclip: {prefix}{text}{hint}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
