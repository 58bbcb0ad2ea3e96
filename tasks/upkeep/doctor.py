"""What of this machine, data root and server is not as a run needs it, and how to mend each. Imports no Prefect."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from tasks.settings import DATA_ROOT_VARIABLE, LIMITS, RAW_CACHE_GB
from tasks.upkeep.prefect_server import ask_server

PACKAGE = "ctclip-rebuild"
POOLS = ("cpu", "gpu", "rebuild")  # of prefect.yaml


@dataclass(frozen=True)
class Finding:
    """What a check has found, in words that say how to mend it; one that `is_bad` fails the command."""

    check: str
    text: str
    is_bad: bool = False


def check_versions() -> Iterator[Finding]:
    """Whether what is installed is what pyproject.toml asks for."""
    wrong = []
    for text in metadata.requires(PACKAGE) or ():
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} is {version}, not {requirement.specifier}")
    if wrong:
        yield Finding("packages", f"{'; '.join(wrong)}: `make install` mends it", is_bad=True)
    else:
        yield Finding("packages", "all within the bounds of pyproject.toml")


def check_gpu() -> Iterator[Finding]:
    """What there is to train on."""
    import torch

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        yield Finding("GPU", f"{torch.cuda.get_device_name()}, {free / 1e9:.0f} of {total / 1e9:.0f} GB free")
    elif torch.version.cuda is None:
        yield Finding("GPU", "none is used: this torch is built without CUDA")
    else:
        yield Finding("GPU", "none is visible; if there is one, look at `nvidia-smi` and CUDA_VISIBLE_DEVICES")


def check_data_root(data_root: Path) -> Iterator[Finding]:
    """Whether the data root can be written, has room, and holds a warehouse that this code can read."""
    from ctclip_model.errors import CTCLIPError
    from warehouse import store

    place = data_root.resolve()
    existing = next(folder for folder in (place, *place.parents) if folder.exists())
    if not os.access(existing, os.W_OK):
        yield Finding("data root", f"{existing} cannot be written: choose another by {DATA_ROOT_VARIABLE}", is_bad=True)
        return
    free = shutil.disk_usage(existing).free
    needed = LIMITS.shard_bytes * 2 + RAW_CACHE_GB * 1e9
    text = f"{place} has {free / 1e9:.0f} GB free"
    if free < needed:
        text += f", {needed / 1e9:.0f} are wanted while downloads are converted: make room, or lower --raw-cache-gb"
    yield Finding("disk", text, is_bad=free < needed)
    if not (place / store.WAREHOUSE_FILE).exists():
        yield Finding("warehouse", "none yet: `ctclip ingest` makes it")
        return
    try:
        with store.read(place) as connection:
            rows = connection.execute("select count(*) from runs").fetchall()
    except CTCLIPError as error:
        yield Finding("warehouse", str(error), is_bad=True)
    else:
        yield Finding("warehouse", f"opens, with {rows[0][0]} rows of runs")


def check_token() -> Iterator[Finding]:
    """Whether there is a token of the Hub; which one is not said."""
    from huggingface_hub import get_token, is_offline_mode

    if is_offline_mode():
        yield Finding("token", "HF_HUB_OFFLINE is set: the Hub is not asked")
    elif get_token():
        yield Finding("token", "there is one; whether it opens CT-RATE the first download tells")
    else:
        yield Finding(
            "token", "none: for a source on the Hub, `hf auth login`, or HF_TOKEN; workers may have a Prefect Secret"
        )


def check_server() -> Iterator[Finding]:
    """Whether the Prefect server answers and has the work pools, each with a worker."""
    if not os.environ.get("PREFECT_API_URL"):
        yield Finding("Prefect", "PREFECT_API_URL is not set: each command runs a server of its own meanwhile")
        return
    try:
        pools = {pool["name"]: pool.get("status") for pool in ask_server("work_pools/filter", {})}
    except OSError as error:
        yield Finding(
            "Prefect", f"{os.environ['PREFECT_API_URL']} does not answer ({error}): `prefect server start`", is_bad=True
        )
        return
    for name in POOLS:
        if name not in pools:
            yield Finding(
                f"pool {name}", f"is not there: `prefect work-pool create {name} --type process`", is_bad=True
            )
        elif pools[name] != "READY":
            yield Finding(
                f"pool {name}", f"is {pools[name]}: `prefect worker start --pool {name}` on its machine", is_bad=True
            )
        else:
            yield Finding(f"pool {name}", "has a worker")
