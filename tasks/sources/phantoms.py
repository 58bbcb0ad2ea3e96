"""Phantoms, the data set of the demonstration."""

from __future__ import annotations

import shutil
from pathlib import Path

from ctclip_model.data.phantom import MARKER, PhantomConfig, make_phantoms
from ctclip_model.errors import ConfigurationError
from ctclip_model.json_config import read_config
from tasks.settings import DEMO_PATIENTS


def make_demo_phantoms(folder: Path, seed: int) -> int:
    """Makes the phantoms of a seed in `folder` and returns their number. 0: they are there already.

    Half a folder of a killed run is made again. Raises `ConfigurationError` if the folder holds anything else.
    """
    train, valid = DEMO_PATIENTS
    config = PhantomConfig(seed=seed, train_patients=train, valid_patients=valid)
    marker = folder / MARKER
    if marker.is_file():
        if read_config(PhantomConfig, marker) == config:
            return 0
        raise ConfigurationError(f"{folder} holds phantoms of another configuration: choose another --folder")
    partial = folder.with_name(f"{folder.name}.partial")
    if folder.exists() and any(folder.iterdir()):
        raise ConfigurationError(f"{folder} is not empty and holds no phantoms: choose another --folder")
    shutil.rmtree(partial, ignore_errors=True)
    count = make_phantoms(partial, config)
    if folder.exists():
        folder.rmdir()
    partial.rename(folder)
    return count
