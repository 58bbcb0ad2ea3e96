"""Prefect flows whose parameters are the fields of a class of options."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, get_args

from prefect import Flow, flow
from prefect.utilities.hashing import file_hash
from typer.models import OptionInfo

P = ParamSpec("P")
Options = TypeVar("Options")
Result = TypeVar("Result")


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
            return function(options(*args, **kwargs))

        signature = inspect.signature(options, eval_str=True)
        run.__signature__ = signature  # type: ignore[attr-defined]
        description = inspect.getdoc(options) or ""
        run.__doc__ = f"{description}\n\n{_list_parameters(signature)}"
        return flow(description=description, version=file_hash(inspect.getfile(function)), **settings)(run)

    return decorate


def _list_parameters(signature: inspect.Signature) -> str:
    """Help texts as a section of a docstring, from which Prefect takes the descriptions of parameters."""
    lines = ["Args:"]
    for name, parameter in signature.parameters.items():
        (option,) = (part for part in get_args(parameter.annotation) if isinstance(part, OptionInfo))
        lines.append(f"    {name}: {option.help}")
    return "\n".join(lines)
