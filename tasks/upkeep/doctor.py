"""Checks of the packages, the machine, the data root and the Prefect server before a run. Imports no Prefect."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from tasks.settings import DATA_ROOT_VARIABLE, LIMITS, RAW_CACHE_GB
from tasks.upkeep.prefect_home import find_home_fault
from tasks.upkeep.prefect_server import find_address_fault, find_api_url, find_own_server_fault, find_proxy, post_filter
from tasks.upkeep.protocols import measure_round_trip

PACKAGE = "ctclip-rebuild"
PIPELINE = "pipeline"  # extra with the packages of all stages
POOLS = ("cpu", "gpu", "rebuild")  # work pools of prefect.yaml


@dataclass(frozen=True)
class CheckResult:
    """Result of one check, with the remedy in its text. `ctclip doctor` fails on a result that `is_bad`."""

    check: str
    text: str
    is_bad: bool = False


def check_versions() -> Iterator[CheckResult]:
    """Compares the installed packages with the bounds of pyproject.toml."""
    wrong = []
    for text in metadata.requires(PACKAGE) or ():
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({"extra": PIPELINE}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} is {version}, not {requirement.specifier}")
    if wrong:
        yield CheckResult("packages", f"{'; '.join(wrong)}. Run `make install`", is_bad=True)
    else:
        yield CheckResult("packages", "all versions are within the bounds of pyproject.toml")


def check_gpu() -> Iterator[CheckResult]:
    """Looks for a GPU to train on."""
    import torch

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        yield CheckResult("GPU", f"{torch.cuda.get_device_name()}, {free / 1e9:.0f} of {total / 1e9:.0f} GB free")
    elif torch.version.cuda is None:
        yield CheckResult("GPU", "not used: this PyTorch is built without CUDA")
    else:
        yield CheckResult("GPU", "no GPU is visible. If there is one, check `nvidia-smi` and CUDA_VISIBLE_DEVICES")


def check_encoders() -> Iterator[CheckResult]:
    """Names the installed encoders of other packages, if there are any."""
    from ctclip_model.models.entry_points import find_fault, list_encoders

    usable = []
    for name, package in list_encoders().items():
        if fault := find_fault(name):
            yield CheckResult("encoders", fault, is_bad=True)
        else:
            usable.append(f"{name} of {package}")
    if usable:
        yield CheckResult("encoders", f"{'; '.join(usable)}. `ctclip import-model --encoder NAME` makes a model of one")


def check_data_root(data_root: Path) -> Iterator[CheckResult]:
    """Checks that the data root is writable, has free space, and has a warehouse that this version can read."""
    from ctclip_model.errors import CTCLIPError
    from warehouse import store  # DuckDB may be the package that is missing
    from warehouse.fold import RECORDS_FOLDER

    data_root = data_root.resolve()
    existing = next(folder for folder in (data_root, *data_root.parents) if folder.exists())
    if not os.access(existing, os.W_OK):
        text = f"{existing} is not writable. Choose another data root with {DATA_ROOT_VARIABLE}"
        yield CheckResult("data root", text, is_bad=True)
        return
    yield check_disk(data_root, shutil.disk_usage(existing).free)
    if not (data_root / store.WAREHOUSE_FILE).exists():
        has_records = (data_root / RECORDS_FOLDER).is_dir()
        yield CheckResult("warehouse", store.describe_missing(data_root), is_bad=has_records)
        return
    try:
        ((count,),) = store.query(data_root, "select count(distinct run_id) from runs")
    except CTCLIPError as error:
        yield CheckResult("warehouse", str(error), is_bad=True)
    else:
        yield CheckResult("warehouse", f"is readable and records {count} runs")


def check_disk(data_root: Path, free_bytes: int) -> CheckResult:
    """Compares the free space with the size of two shards and a full cache of downloads."""
    needed_bytes = LIMITS.shard_bytes * 2 + RAW_CACHE_GB * 1e9
    text = f"{data_root} has {free_bytes / 1e9:.0f} GB free"
    if free_bytes >= needed_bytes:
        return CheckResult("disk", text)
    text += f", and converting downloads needs {needed_bytes / 1e9:.0f} GB. Free some space, or lower --raw-cache-gb"
    return CheckResult("disk", text, is_bad=True)


def check_token() -> Iterator[CheckResult]:
    """Looks for a token of the Hub, which is never printed."""
    from huggingface_hub import get_token, is_offline_mode

    if is_offline_mode():
        yield CheckResult("token", "not needed: HF_HUB_OFFLINE is set, so no request goes to the Hub")
    elif get_token():
        yield CheckResult("token", "found. The first download shows whether it has access to CT-RATE")
    else:
        yield CheckResult(
            "token",
            "not found. A source on the Hub needs one: run `hf auth login`, set HF_TOKEN, or store a Prefect Secret",
        )


def check_server() -> Iterator[CheckResult]:
    """Checks Prefect's folder, that the server answers, and that each work pool exists and has a worker."""
    url = find_api_url()
    if fault := find_own_server_fault() if url is None else find_home_fault():
        yield CheckResult("Prefect's folder", fault, is_bad=True)
    if url is None:
        yield CheckResult("Prefect", "no server is named: each command starts a temporary one of its own")
    elif fault := find_address_fault(url):
        yield CheckResult("Prefect", f"{url}: {fault}", is_bad=True)
    else:
        yield from _check_named_server(url)


def _check_named_server(url: str) -> Iterator[CheckResult]:
    if proxy := find_proxy(url):
        text = f"{proxy} is asked for {url} by workers and by `prefect`. Set no_proxy=127.0.0.1,localhost"
        yield CheckResult("proxy", text, is_bad=True)
    round_trip_s = measure_round_trip(url)
    try:
        pools = {pool["name"]: pool.get("status") for pool in post_filter("work_pools/filter", {}, {"name": str})}
    except OSError as error:
        state = "does not answer" if round_trip_s is None else "does not answer as a Prefect server"
        text = f"{url} {state} ({error}). Run `prefect server start`, or correct PREFECT_API_URL"
        yield CheckResult("Prefect", text, is_bad=True)
        return
    distance = f", {round_trip_s:.2g} s away" if round_trip_s is not None else ""
    yield CheckResult("Prefect", f"{url} answers{distance}")
    for name in POOLS:
        yield _check_pool(name, name in pools, pools.get(name))


def _check_pool(name: str, exists: bool, status: object) -> CheckResult:
    check = f"pool {name}"
    if not exists:
        return CheckResult(check, "does not exist. Run `ctclip deploy`", is_bad=True)
    if status != "READY":
        text = f"is {status}. Run `prefect worker start --pool {name}` on the pool's machine"
        return CheckResult(check, text, is_bad=True)
    return CheckResult(check, "has a worker")
