"""RAD-ChestCT: its names, arrays, labels and orientation, from a folder to shards."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from support.data_roots import convert, ingest
from support.reports import write_csv
from support.volumes import make_noise, reason_of_refusal

from ctclip_model.config import Recipe
from ctclip_model.data.names import parse_any_name, parse_rad_name, split_of
from ctclip_model.data.shards import read_volume
from ctclip_model.data.volume import convert_volume
from ctclip_model.errors import BadNameError, ConfigurationError
from tasks.run.selection import Selection
from tasks.sources.open_source import open_source
from tasks.sources.rad_chestct import LABELS, NAME_COLUMN, RadChestSource
from warehouse.store import query

RECIPE = Recipe("rad", spacing_mm=(1.5, 1.1, 1.1), shape=(12, 24, 24))
SHAPE = (20, 30, 40)  # z, y, x


def array(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1000, 1000, SHAPE).astype(np.int16)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three scans, one of them without a file, and rows with a bad name and a bad label."""
    folder = tmp_path / "rad"
    header = [NAME_COLUMN, "Emphysema", "Lung nodule", "Location of something"]
    rows = [["trn00001", "1.0", "0.0", "x"], ["val00002", "0.0", "1.0", ""], ["tst00003", "0.0", "0.0", ""]]
    write_csv(folder / LABELS, header, [*rows, ["../etc", "0", "0", ""], ["trn00004", "0.5", "0", ""]])
    for seed, name in enumerate(("trn00001", "val00002")):
        np.savez_compressed(folder / f"{name}.npz", ct=array(seed))
    return folder


def test_names_are_read_strictly():
    assert str(parse_rad_name("trn00001.npz")) == "trn00001"
    assert str(parse_rad_name("tst34780").path()) == "tst34780.npz"
    assert str(parse_any_name("valid_1_a_1")) == "valid_1_a_1"
    assert [split_of(name) for name in ("val00002", "valid_1_a_1", "train_3_b")] == ["external", "valid", "train"]
    for name in ("trn1", "trn000011", "val_1_a_1", "../trn00001", "TRN00001", "trn00001.nii.gz", ""):
        with pytest.raises(BadNameError):
            parse_rad_name(name)
    assert Selection(split="external").choose(["trn00001", "train_1_a_1"]) == ["trn00001"]
    assert Selection(split="train").choose(["trn00001", "train_1_a_1"]) == ["train_1_a_1"]


def test_real_labels_are_read(shared_data, tmp_path):
    (tmp_path / LABELS).write_bytes((shared_data / "data" / "rad_chestct_labels.csv").read_bytes())
    _, catalogue = RadChestSource(tmp_path, tmp_path / "data").read()
    assert len(catalogue.volumes) == len(catalogue.published_labels) == 3630
    assert not catalogue.errors
    assert {len(rows) for rows in catalogue.published_labels.values()} == {15}


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [
        ("xyz", lambda zyx: zyx.transpose(2, 1, 0)),
        ("yxz", lambda zyx: zyx.transpose(1, 2, 0)),
        ("xYZ", lambda zyx: zyx.transpose(2, 1, 0)[:, ::-1, ::-1]),
        ("Zxy", lambda zyx: zyx.transpose(0, 2, 1)[::-1]),
    ],
)
@pytest.mark.parametrize("order", ["C", "F"])
def test_an_array_reads_as_the_same_nifti(tmp_path, orientation, turn, order):
    np.savez_compressed(tmp_path / "trn00001.npz", ct=np.asarray(array(0), order=order))
    nib.save(nib.Nifti1Image(turn(array(0)), np.diag([0.8, 0.8, 0.8, 1.0])), tmp_path / "a.nii")
    expected = convert_volume(tmp_path / "a.nii", recipe=RECIPE)
    ours = convert_volume(tmp_path / "trn00001.npz", recipe=RECIPE, orientation=orientation)
    assert np.array_equal(ours.voxels, expected.voxels)
    assert (ours.spacing_mm, ours.shape_in) == ((0.8, 0.8, 0.8), expected.shape_in)


def test_bad_archives_are_refused(tmp_path):
    path = tmp_path / "trn00001.npz"
    assert reason_of_refusal(path) == "missing_file"
    np.savez_compressed(path, ct=array(0))
    content = path.read_bytes()
    for position in range(0, len(content), 211):
        path.write_bytes(content[:position])
        assert reason_of_refusal(path) in {"not_npz", "truncated"}
    for position in range(60, len(content) - 200, 997):
        block = bytearray(content)
        block[position] ^= 0x55
        path.write_bytes(block)
        assert reason_of_refusal(path) in {"bad_crc", "not_npz", "bad_dtype", "truncated", "oversized_header"}
    for arrays, reason in (
        ({"other": array(0)}, "not_npz"), ({"ct": make_noise((5, 5))}, "not_3d"),
        ({"ct": make_noise((1, 9, 9))}, "too_few_slices"),
        ({"ct": np.zeros(SHAPE)}, "all_zero"), ({"ct": np.full(SHAPE, np.nan)}, "nan_voxels"),
        ({"ct": np.array([None, "code"])}, "bad_dtype"), ({"ct": array(0) + 1j}, "bad_dtype"),
    ):  # fmt: skip
        np.savez_compressed(path, **arrays)
        assert reason_of_refusal(path) == reason


def test_an_array_that_promises_more_than_the_file_holds_is_refused_unread(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<i2", "fortran_order": False, "shape": (9000, 9000, 9000)})
    path = tmp_path / "trn00001.npz"
    for content, reason in ((header.getvalue() + bytes(100), "truncated"), (bytes(50_000_000), "oversized_header")):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
            archive.writestr("ct.npy", content)
        assert reason_of_refusal(path) == reason


def turned(folder: Path, data_root: Path, orientation: str | None) -> np.ndarray:
    """The first scan as it stands in its shard after an ingest and a conversion."""
    ingest(open_source(f"rad-chestct:{folder}", data_root, None, orientation), data_root)
    results = [convert(data_root, RECIPE) for _ in range(2)]
    assert [(result["done"], result["rejected"]) for result in results] == [(2, 0), (0, 0)]
    [(path, row)] = query(
        data_root, "select shard_path, row_index from current_shard_volumes where volume_name = 'trn00001'"
    )
    return read_volume(data_root / path, row)


def test_scans_become_shards_that_turn_with_the_orientation(folder, tmp_path):
    data_root = tmp_path / "data"
    before = turned(folder, data_root, None)
    assert np.array_equal(before, convert_volume(folder / "trn00001.npz", recipe=RECIPE).voxels)
    assert np.array_equal(turned(folder, data_root, "yxz"), before.swapaxes(1, 2))


def test_scans_are_found_by_name_wherever_they_lie(folder, tmp_path):
    before = turned(folder, tmp_path / "before", None)
    (folder / "npz").mkdir()
    (folder / "trn00001.npz").rename(folder / "npz/TRN00001.NPZ")
    (folder / LABELS).rename(folder / "npz" / LABELS)
    assert np.array_equal(turned(folder, tmp_path / "after", None), before)


def test_the_warehouse_knows_scans_and_labels_as_external(folder, tmp_path):
    data_root = tmp_path / "data"
    source = RadChestSource(folder, data_root)
    ingest(source, data_root)
    assert (source.name, source.kind, source.storage) == (f"rad-chestct://{folder}", "rad-chestct", "npz-xyz")
    assert query(data_root, "select split, count(*) from current_volumes group by 1") == [("external", 3)]
    labels = "select abnormality, value from current_published_labels where scan_id = 'trn00001' order by 1"
    assert query(data_root, labels) == [("Emphysema", 1), ("Lung nodule", 0)]
    assert query(data_root, "select distinct split from labels_wide") == [("external",)]
    assert query(data_root, "select scan_id, patient_id, split from scans order by 1")[0] == (
        "trn00001", "trn00001", "external",
    )  # fmt: skip
    reasons = {error.reason for error in source.read()[1].errors}
    assert reasons == {"bad_name", "bad_label"}


def test_a_folder_without_labels_and_an_orientation_that_is_none_are_refused(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigurationError, match=LABELS):
        open_source(f"rad-chestct:{tmp_path / 'empty'}", tmp_path / "data", None)
    for orientation in ("xy", "xxz", "abc", "xyzz", ""):
        with pytest.raises(ConfigurationError, match="letters x, y and z"):
            RadChestSource(folder, tmp_path / "data", orientation)
