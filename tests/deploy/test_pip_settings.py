"""pip's settings of this machine reach a clean tree, with their paths moved."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from support.paths import ROOT


@pytest.fixture
def pip_settings() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pip_settings", ROOT / "deploy" / "pip_settings.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_variables_go_before_sections_and_those_before_global(pip_settings):
    listing = ":env:.timeout='3'\nglobal.index-url='https://one'\nglobal.timeout='1'\ninstall.index-url='https://two'\n"
    assert pip_settings.read_settings(listing) == {"index-url": "https://two", "timeout": "3"}


def test_configuration_file_is_not_passed_on(pip_settings):
    assert pip_settings.read_settings(":env:.config-file='/etc/site.conf'\n") == {}


def test_local_paths_are_moved_and_mounted(pip_settings, tmp_path: Path):
    wheels, index = tmp_path / "wheels", tmp_path / "mirror" / "simple"
    wheels.mkdir()
    index.mkdir(parents=True)
    settings = {
        "find-links": f"{wheels} https://wheels.example/",
        "extra-index-url": f"file://{index}",
        "cert": "/nowhere/ca.pem",
        "no-input": "true",
    }
    assert list(pip_settings.print_lines(settings)) == [
        f"PIP_FIND_LINKS=/host{wheels} https://wheels.example/",
        f"PIP_EXTRA_INDEX_URL=file:///host{index}",
        "PIP_CERT=/nowhere/ca.pem",
        "PIP_NO_INPUT=true",
        str(index.parent),
        str(wheels),
    ]
