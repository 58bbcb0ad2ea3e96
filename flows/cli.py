"""`ctclip`: the flows, the warehouse and your own CT volumes, from a shell.

Commands that run no flow (`status`, `sql`, `predict`, `--help`) never import Prefect, which takes seconds.
"""

from __future__ import annotations

import atexit
import logging
import os
import signal
import sys
import sysconfig
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Annotated, Any, NoReturn

import typer
from typer.exceptions import TyperException

from ctclip_model.errors import ConfigurationError, CTCLIPError, PreemptedError
from flows.commands import deploying, doctor, labels, models, sharing, stages, volumes, warehouse
from flows.streams import replace_unshowable
from tasks.run.logs import configure_logging, is_log_requested
from tasks.upkeep.lost_server import IS_LOST

logger = logging.getLogger(__name__)

# What the extra `pipeline` installs, by the names that Python imports. `predict` and `embed-volume` need none of it.
PIPELINE_PACKAGES = (
    "prefect", "dotenv", "httpx", "dask", "distributed", "packaging", "psutil", "tenacity", "httpcore2", "duckdb",
    "pytz",
)  # fmt: skip
INSTALL_PIPELINE = "pip install 'ctclip-rebuild[pipeline]'"
# Commands in the order of the work, under the headings of `ctclip --help`.
PANELS: dict[str, list[Callable[..., None]]] = {
    "Set up": [
        doctor.doctor,
        models.fetch_models,
        models.import_model,
        labels.findings,
        labels.import_labels,
        deploying.deploy,
    ],
    "Run": stages.list_flow_commands(),
    "Look": [warehouse.status, warehouse.plan, warehouse.sql, warehouse.export],
    "Your own CT": [volumes.predict, volumes.embed_volume],
    "Share": [sharing.push, sharing.sync_shards],
    "Upkeep": [warehouse.publish, warehouse.gc, warehouse.verify, warehouse.backup, warehouse.restore],
}
app = typer.Typer(
    no_args_is_help=True, add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False
)
for heading, commands in PANELS.items():
    for command in commands:
        app.command(rich_help_panel=heading)(command)


def _print_version(is_given: bool) -> None:
    if is_given:
        from importlib import metadata

        from tasks.run.code_version import code_version

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
    """Runs the command of `sys.argv` and ends this process with its exit code."""
    code = run()
    if IS_LOST.is_set():
        os._exit(code)  # Prefect's exit handlers would send each event of the flow to the lost server
    if code:
        _leave(code)


def run() -> int:
    """Runs a command and returns its exit code: 0, or 1 after one clear line on stderr.

    143: SIGTERM ended a training. 130: Ctrl-C.
    """
    command: Callable[..., Any] = app
    replace_unshowable()
    try:
        _refuse_free_threads()
        code = command(standalone_mode=False) or 0
        sys.stdout.flush()  # a full disk is an error here, and not after the end
        return code
    except PreemptedError as error:
        return _report(error, code=128 + signal.SIGTERM)
    except CTCLIPError as error:
        return _report(error)
    except TyperException as error:
        return _report(ConfigurationError(error.format_message() or "see ctclip --help"))
    except ModuleNotFoundError as error:
        return _report(*_explain_missing(error))
    except BrokenPipeError:
        return 1
    except (KeyboardInterrupt, typer.Abort):
        print("ctclip: interrupted. A rerun goes on from here", file=sys.stderr)
        return 130
    except Exception as error:  # noqa: BLE001  one line on the screen: --debug shows the traceback
        return _report(error, f"{type(error).__name__}: ")


def _refuse_free_threads() -> None:
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        raise ConfigurationError(
            f"{sys.executable} is a free-threaded build of Python, on which nobody has tried this: take an ordinary one"
        )


def _explain_missing(error: ModuleNotFoundError) -> tuple[Exception, str]:
    """The error to report for a package that is missing, and its prefix. The core is installed without the pipeline."""
    name = (error.name or "").partition(".")[0]
    if name not in PIPELINE_PACKAGES:
        return error, f"{type(error).__name__}: "
    line = f"{name} is missing, which comes with the pipeline: {INSTALL_PIPELINE}"
    return ConfigurationError(line), ""


def _report(error: Exception, prefix: str = "", code: int = 1) -> int:
    if os.environ.get("CTCLIP_DEBUG"):
        traceback.print_exception(error)
        return code
    text = " ".join(str(error).split())
    hint = " (--debug shows the traceback)" if prefix else ""
    if is_log_requested():
        logger.error("%s%s", prefix, text, exc_info=error if prefix else None)
    else:
        print(f"ctclip: {prefix}{text}{hint}", file=sys.stderr)
    return code


def _leave(code: int) -> NoReturn:
    """Ends this process as a child of `multiprocessing` ends: threads and exit handlers first, modules not at all.

    A thread of Prefect may hold an error, whose traceback holds a connection. DuckDB would list all of that on stderr
    when its module is taken apart.
    """
    with suppress(OSError):
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
