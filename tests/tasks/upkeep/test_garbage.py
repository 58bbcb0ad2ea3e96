"""`ctclip gc` lists garbage with its reason, deletes it on request, and keeps everything that is in use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.data_roots import assert_every_volume_is_converted, convert, ingest, list_converted
from support.volumes import COARSE

from ctclip_model.data.phantom import PhantomConfig, make_phantoms
from ctclip_model.errors import ConfigurationError
from tasks.run.lease import hold_lease
from tasks.upkeep.garbage import collect_garbage


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
