"""Prefect flows whose parameters are the fields of a class of options."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ParamSpec, TypeVar, get_args

from prefect import Flow
from prefect.context import FlowRunContext
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.utilities.hashing import file_hash
from typer.models import OptionInfo

from tasks.sources.address import refuse_credentials
from tasks.stages.prefect_pages import LOST, note_loss

P = ParamSpec("P")
T = TypeVar("T")
Options = TypeVar("Options")
Result = TypeVar("Result")

# results and errors of the function of the flow that is called here
OUTCOME: ContextVar[list[Any]] = ContextVar("outcome")


class SturdyFlow(Flow[P, T]):
    """A flow whose call outlives the Prefect server. A worker's engine does not call it, and needs its server."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:  # type: ignore[override]
        source = inspect.signature(self.fn).bind_partial(*args, **kwargs).arguments.get("source")
        if isinstance(source, str):
            refuse_credentials(source)  # before Prefect records the parameters
        outcome: list[Any] = []
        token = OUTCOME.set(outcome)
        try:
            return super().__call__(*args, **kwargs)
        except Exception as error:
            if not outcome and not (FlowRunContext.get() and isinstance(error, LOST)):
                raise
            if not outcome:  # a stage of a rebuild, which Prefect could not begin
                if (interrupt := _find_interrupt(error)) is not None:
                    raise interrupt from None
                note_loss(error)
                return self.fn(*args, **kwargs)
            (ended,) = outcome
            if isinstance(ended, BaseException):
                raise ended from None
            note_loss(error)
            return ended
        finally:
            OUTCOME.reset(token)


def flow_taking(
    options: Callable[P, Options], **settings: Any
) -> Callable[[Callable[[Options], Result]], Flow[P, Result]]:
    """Decorator that makes a flow of a function of its options.

    `options` is a dataclass of `flows.options`. Its fields become the flow's parameters, its docstring the flow's
    description, and its help texts the descriptions in Prefect's form. `settings` are those of `prefect.flow`.
    """

    def decorate(function: Callable[[Options], Result]) -> Flow[P, Result]:
        @functools.wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> Result:
            try:
                result = function(options(*args, **kwargs))
            except BaseException as error:  # Prefect may put its own error in the place of an interrupt
                OUTCOME.get([]).append(error)
                raise
            OUTCOME.get([]).append(result)
            return result

        signature = inspect.signature(options, eval_str=True)
        run.__signature__ = signature  # type: ignore[attr-defined]
        description = inspect.getdoc(options) or ""
        run.__doc__ = f"{description}\n\n{_list_parameters(signature)}"
        return SturdyFlow(run, description=description, version=file_hash(inspect.getfile(function)), **settings)

    return decorate


@contextmanager
def one_heartbeat() -> Iterator[None]:
    """Runs the flows of a block without heartbeats. The flow run around the block has one, in the same process.

    Prefect waits for the thread of a heartbeat at the end of a flow run, for half a second on average.
    """
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        yield


def _find_interrupt(error: BaseException) -> BaseException | None:
    """The Ctrl-C or the end of the process during which an error of Prefect arose."""
    found: BaseException | None = error
    while isinstance(found, Exception):
        found = found.__context__
    return found


def _list_parameters(signature: inspect.Signature) -> str:
    """Help texts as a section of a docstring, from which Prefect takes the descriptions of parameters."""
    lines = ["Args:"]
    for name, parameter in signature.parameters.items():
        (option,) = (part for part in get_args(parameter.annotation) if isinstance(part, OptionInfo))
        lines.append(f"    {name}: {option.help}")
    return "\n".join(lines)
