"""`ctclip deploy`: the deployments on a Prefect server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ctclip_model.errors import MissingInputError
from flows.display import console


def deploy(
    folder: Annotated[Path, typer.Option(help="Folder of prefect.yaml and automations.yaml.")] = Path(),
) -> None:
    """Register flows, pools and automations with Prefect.

    Schedules and parameters that were set on the server stay.
    """
    from tasks.upkeep.prefect_server import find_api_url

    if find_api_url() is None:
        raise MissingInputError("no Prefect server is named: set PREFECT_API_URL, after `prefect server start`")
    from tasks.stages.deploy import deploy as register

    for line in register(folder):
        console.print(line, markup=False)
