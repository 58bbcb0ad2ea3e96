"""One declaration of each option: flow, form and command have the same names, defaults and descriptions."""

from __future__ import annotations

import json
from importlib import metadata

import pytest
import typer
import yaml
from prefect import Flow
from prefect.flows import load_flow_from_entrypoint
from support.command_line import run_ctclip
from support.paths import ROOT

from ctclip_model.stages import PIPELINE
from flows.cli import PANELS, app
from flows.commands.stages import split_words
from flows.options import OPTIONS

DESCRIPTIONS = {
    deployment["name"]: deployment.get("description")
    for deployment in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
}


def load_flow(name: str) -> Flow:
    module = name.replace("-", "_")
    return load_flow_from_entrypoint(f"flows.{module}.{module}")


@pytest.mark.parametrize("name", OPTIONS)
def test_flow_form_and_command_are_alike(name):
    form = load_flow(name).parameters.properties
    command = typer.main.get_command(app).commands[name]
    options = {option.name: option for option in command.params if option.name != "as_json"}
    assert list(form) == list(options)
    for parameter, field in form.items():
        shown = options[parameter]
        assert field["description"] == shown.help
        default = shown.default
        if field.get("type") == "array":
            default = split_words(default)
        assert json.loads(json.dumps(field["default"])) == json.loads(json.dumps(default, default=str))
    assert load_flow(name).description == command.help
    assert DESCRIPTIONS.get(name) is None  # so that a deployment has its flow's


def test_every_stage_has_its_command_and_every_command_one_panel():
    names = [command.__name__.replace("_", "-") for commands in PANELS.values() for command in commands]
    assert len(names) == len(set(names))
    assert set(names) == set(typer.main.get_command(app).commands)
    assert set(PIPELINE) <= set(names)


def test_help_fits_a_screen_of_80_columns():
    lines = run_ctclip("--help").stdout.splitlines()
    assert max(map(len, lines)) <= 80
    headings = [line.strip("╭╮─ ") for line in lines if line.startswith("╭")]
    assert headings == ["Options", *PANELS]
    assert not [line for line in lines if line.startswith("│   ")]  # every command fits one line


def test_version_is_that_of_the_package():
    assert run_ctclip("--version").stdout.startswith(f"ctclip {metadata.version('ctclip-rebuild')}, commit ")
