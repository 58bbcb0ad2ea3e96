"""Commands that run a flow, each made of the options of its flow."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from inspect import Parameter
from typing import Annotated, Any, get_args, get_origin

from flows.commands.running import run_flow
from flows.options import OPTIONS, Json

AS_JSON = Parameter("as_json", Parameter.KEYWORD_ONLY, annotation=Json, default=False)


def list_flow_commands() -> list[Callable[..., None]]:
    """A command for each flow that takes options."""
    return [make_command(name, options) for name, options in OPTIONS.items()]


def make_command(name: str, options: type) -> Callable[..., None]:
    """Command with the options, the defaults and the help of a flow, and `--json`."""
    declared = inspect.signature(options, eval_str=True).parameters.values()
    lists = {parameter.name for parameter in declared if _is_list(parameter)}

    def command(as_json: bool, **values: Any) -> None:
        given = {key: split_words(value) if key in lists else value for key, value in values.items()}
        run_flow(name, as_json, **given)
        if name == "demo" and not as_json:
            from flows.results import show_results

            show_results(values["folder"])

    command.__name__ = name
    command.__doc__ = options.__doc__
    parameters = [_as_words(parameter) if _is_list(parameter) else parameter for parameter in declared]
    keyword_only = [parameter.replace(kind=Parameter.KEYWORD_ONLY) for parameter in parameters]
    command.__signature__ = inspect.Signature([*keyword_only, AS_JSON])  # type: ignore[attr-defined]
    return command


NO_WORDS = "none"


def split_words(text: str) -> tuple[str, ...]:
    """Words of a list on the command line: with commas, or `none`."""
    return () if text == NO_WORDS else tuple(text.split(","))


def _is_list(parameter: Parameter) -> bool:
    return get_origin(get_args(parameter.annotation)[0]) is tuple


def _as_words(parameter: Parameter) -> Parameter:
    """The option of a list, which a shell gives as one text."""
    _, option = get_args(parameter.annotation)
    return parameter.replace(annotation=Annotated[str, option], default=",".join(parameter.default) or NO_WORDS)
