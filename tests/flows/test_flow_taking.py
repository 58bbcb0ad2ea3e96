"""Flows that are made of a class of options, one inside the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import pytest
from typer import Option

pytestmark = pytest.mark.orchestration


@dataclass
class Options:
    """Calls itself."""

    depth: Annotated[int, Option(help="Flows below this one.")] = 0


def test_a_flow_inside_another_one_has_no_heartbeat_to_wait_for(prefect_server):
    from prefect.settings import get_current_settings

    from flows.flow_taking import flow_taking, one_heartbeat

    @flow_taking(Options, name="nested")
    def nested(options: Options) -> list[int | None]:
        own = get_current_settings().flows.heartbeat_frequency
        with one_heartbeat():
            return [own, *(nested(depth=options.depth - 1) if options.depth else [])]

    usual = get_current_settings().flows.heartbeat_frequency
    assert usual is not None
    assert nested(depth=2) == [usual, None, None]
