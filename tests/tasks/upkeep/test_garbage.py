"""`ctclip gc` lists garbage with its reason, deletes it on request, and keeps everything that is in use."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from support.data_roots import assert_every_volume_is_converted, convert, count_volumes, ingest, list_converted
from support.volumes import COARSE

from ctclip_model.data.phantom import PhantomConfig, make_phantoms
from ctclip_model.errors import ConfigurationError
from tasks.remote.files import PARTIAL_FOLDER
from tasks.run.lease import hold_lease
from tasks.upkeep.garbage import collect_garbage
from warehouse import store


@pytest.fixture
def data_root(few_phantoms: Path, tmp_path: Path) -> Path:
    ingest(few_phantoms, tmp_path / "data")
    return tmp_path / "data"


def paths(data_root: Path, **options: bool) -> dict[str, str]:
    root = data_root.resolve()
    return {str(file.path.relative_to(root)): file.reason for file in collect_garbage(data_root, **options).garbage}


def test_superseded_shards_go_on_request_alone_and_current_ones_stay(data_root, tmp_path):
    convert(data_root)
    before = {path for path, _ in list_converted(data_root).values()}
    assert paths(data_root) == {}
    make_phantoms(tmp_path / "other", PhantomConfig(seed=2, train_patients=6, valid_patients=6), processes=1)
    ingest(tmp_path / "other", data_root)  # same names, different volumes
    convert(data_root)
    superseded = before - {path for path, _ in list_converted(data_root).values()}
    assert superseded
    assert paths(data_root) == dict.fromkeys(superseded, "every volume has a newer row")
    assert all((data_root / path).exists() for path in superseded)
    assert set(paths(data_root, delete=True)) == superseded
    assert not any((data_root / path).exists() for path in superseded)
    assert_every_volume_is_converted(data_root)
    assert paths(data_root) == {}


def test_partial_and_unrecorded_files_are_listed_by_their_reason(data_root):
    left = {
        f"shards/{COARSE.recipe_id}/unknown.arrow": "left by a run that died",
        "models/unknown/model.safetensors": "no row of models refers to it",
        "raw/.partial/0123": "partial download that no volume needs",
        "records/runs/.half.parquet.1.tmp": "partial record file",
    }
    for path in left:
        (data_root / path).parent.mkdir(parents=True, exist_ok=True)
        (data_root / path).write_bytes(b"half")
    for path in (data_root / "models/unknown", data_root / "models/unknown/model.safetensors"):
        os.utime(path, times=(0, 0))
    (data_root / "models/young.work").mkdir()  # this training may resume
    found = paths(data_root, delete=True)
    assert {path.removesuffix("/model.safetensors"): why for path, why in left.items()} == found
    assert not any((data_root / path).exists() for path in left)
    assert (data_root / "models/young.work").exists()


def test_nothing_is_collected_while_a_stage_runs(data_root):
    with hold_lease(data_root, "convert"), pytest.raises(ConfigurationError, match="convert: gave up"):
        collect_garbage(data_root, delete=True)


def test_raw_files_of_volumes_whose_shard_is_lost_are_kept(few_phantoms, data_root):
    shutil.copytree(few_phantoms / "dataset", data_root / "raw/dataset")
    convert(data_root)
    partial = data_root / "raw" / PARTIAL_FOLDER
    partial.mkdir()
    for (sha256,) in store.query(data_root, "select sha256 from current_volumes"):
        (partial / sha256).write_bytes(b"half")
    assert sum(reason == "converted" for reason in paths(data_root).values()) == count_volumes(data_root)
    rows = list_converted(data_root)
    lost = min(path for path, _ in rows.values())
    volumes = {name for name, (path, _) in rows.items() if path == lost}
    (data_root / lost).unlink()
    found = collect_garbage(data_root, delete=True).garbage
    assert len([file for file in found if file.reason == "converted"]) == count_volumes(data_root) - len(volumes)
    assert {path.name.removesuffix(".nii.gz") for path in (data_root / "raw/dataset").rglob("*.nii.gz")} == volumes
    assert len(list(partial.iterdir())) == len(volumes)
