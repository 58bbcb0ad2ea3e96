"""`ctclip`: every stage, the whole rebuild, and the warehouse, from a shell.

Commands that run no stage (`status`, `sql`, `predict`, `--help` and so on) never import Prefect: it takes seconds.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import typer
from typer.exceptions import TyperException

from ctclip_model.errors import ConfigurationError, CTCLIPError, PreemptedError
from flows.commands import app, doctor, models, stages, transfers, volumes, warehouse
from tasks.run.logs import is_asked_for

logger = logging.getLogger(__name__)

COMMANDS = (stages, transfers, models, volumes, warehouse, doctor)  # in the order in which `--help` lists them


def main() -> None:
    """Runs the command line: exit code 0, or 1 with one clear line on stderr; 143 where SIGTERM ended a training."""
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
        print("ctclip: interrupted; a rerun goes on from here", file=sys.stderr)
        sys.exit(130)
    except Exception as error:  # noqa: BLE001  one line for a person; the traceback is one option away
        _fail(error, f"{type(error).__name__}: ")


def _fail(error: Exception, prefix: str = "", code: int = 1) -> None:
    if os.environ.get("CTCLIP_DEBUG"):
        raise error
    text = " ".join(str(error).split())
    hint = " (--debug shows the traceback)" if prefix else ""
    if is_asked_for():
        logger.error("%s%s", prefix, text, exc_info=error if prefix else None)
    else:
        print(f"ctclip: {prefix}{text}{hint}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
