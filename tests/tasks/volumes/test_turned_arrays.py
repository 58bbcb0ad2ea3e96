"""Arrays of a folder in another order: turned to LPS where the ingest asks for it, and otherwise told."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, ornt_transform
from support.command_line import run_ctclip
from support.data_roots import convert, ingest
from support.sources import edit_rows
from support.volumes import COARSE

from ctclip_model.config import smoke
from ctclip_model.data.phantom import PhantomConfig, make_phantoms
from ctclip_model.errors import ConfigurationError
from tasks.plan.explain import explain_plan
from tasks.sources.local_source import LocalSource
from tasks.sources.open_source import open_source
from tasks.sources.tables import METADATA
from tasks.upkeep.queries import list_notes
from tasks.volumes.jobs import read_volumes
from warehouse.store import query


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms")
    make_phantoms(folder, PhantomConfig(seed=6, train_patients=1, valid_patients=2), processes=1)
    return folder


@pytest.fixture(scope="module")
def expected(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Checksums of the shards of the LPS arrays."""
    return list_checksums(phantoms, tmp_path_factory.mktemp("expected"))


@pytest.fixture
def source(phantoms: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(phantoms, tmp_path / "source"))


def rewrite(path: Path, code: str, header: str = "right") -> None:
    """Rewrites a volume losslessly in another order. Its header is right, `blank`, or stays as it was (`wrong`)."""
    image = nib.load(path)
    turned = image.as_reoriented(ornt_transform(axcodes2ornt("LPS"), axcodes2ornt(code)))
    affine = turned.affine if header == "right" else image.affine
    written = nib.Nifti1Image(np.asarray(turned.dataobj), affine)
    written.header.set_slope_inter(1, 0)
    if header == "blank":
        written.set_sform(None, code=0)
        written.set_qform(None, code=0)
    nib.save(written, path)


def rewrite_all(source: Path, code: str, header: str = "right") -> None:
    for path in source.rglob("*.nii.gz"):
        rewrite(path, code, header)


def list_checksums(source: Path, data_root: Path, orientation: str | None = None) -> dict[str, int]:
    """Checksum of each volume's shard row after an ingest and a conversion."""
    ingest(open_source(str(source), data_root, None, orientation), data_root)
    convert(data_root)
    return dict(query(data_root, "select volume_name, crc32 from current_shard_volumes"))


def list_problems(data_root: Path) -> dict[str, int]:
    sql = "select problem, count(*) from data_quality where problem not like 'report%' group by 1"
    return dict(query(data_root, sql))


@pytest.mark.parametrize("code", ["RAS", "LAS", "LPI", "PLS", "LSP", "SAR", "ILA"])
@pytest.mark.parametrize("orientation", ["header", "code"])
def test_turned_arrays_give_the_shards_of_the_lps_originals(source, expected, tmp_path, code, orientation):
    """Spacing and shape of the table are those of the original, also where axes changed places."""
    rewrite_all(source, code, "right" if orientation == "header" else "wrong" if code[2] in "SI" else "right")
    data_root = tmp_path / "data"
    checksums = list_checksums(source, data_root, code if orientation == "code" else "header")
    assert checksums == expected
    assert list_problems(data_root) == {}
    assert query(data_root, "select distinct storage from current_volumes") == [
        (f"v2-{code if orientation == 'code' else 'header'}",)
    ]


def test_arrays_are_taken_as_they_lie_by_default_and_told(source, expected, tmp_path):
    rewrite_all(source, "RAS")
    edit_rows(source / METADATA["train"], lambda row: row.update(ImageOrientationPatient="[1, 0, 0, 0, -1, 0]"))
    data_root, count = tmp_path / "data", len(expected)
    assert list_checksums(source, data_root).keys() == expected.keys()
    assert set(list_checksums(source, data_root).values()).isdisjoint(expected.values())
    (note,) = list_notes(data_root)
    assert note == (
        f"{count} volumes are not LPS by header or metadata: see data_quality and `ctclip ingest --orientation`"
    )
    assert note in " ".join(run_ctclip("status", "--data-root", data_root).stdout.split())
    assert list_checksums(source, data_root, "header") == expected
    ((in_train,),) = query(data_root, "select count(*) from current_volumes where split = 'train'")
    assert list_notes(data_root)[0].startswith(f"{in_train} volumes are not LPS")  # their metadata says so


def test_stored_is_the_default_and_the_fingerprint_of_older_versions(source, phantoms, tmp_path):
    data_root = tmp_path / "data"
    ingest(LocalSource(source, data_root), data_root)
    before = {name: str(volume.fingerprint) for name, volume in read_volumes(data_root, COARSE, None).items()}
    for orientation in ("stored", "LPS", None):
        ingest(open_source(str(source), data_root, None, orientation), data_root)
        volumes = read_volumes(data_root, COARSE, None)
        assert {name: str(volume.fingerprint) for name, volume in volumes.items()} == before
        assert {volume.orientation for volume in volumes.values()} == {"xyz"}


def test_another_orientation_is_pending_and_is_kept_by_later_ingests(source, tmp_path):
    data_root = tmp_path / "data"
    ingest(source, data_root)
    count = convert(data_root, smoke().recipe)["done"]
    ingest(open_source(None, data_root, None, "header"), data_root)
    assert explain_plan(data_root, "convert", 5, {"preset": "smoke"})["reasons"] == {"orientation changed": count}
    assert convert(data_root, smoke().recipe)["done"] == count
    assert open_source(str(source), data_root, None).storage == "v2-header"
    assert open_source(None, data_root, None, "stored").storage == "v2"
    assert open_source(None, data_root, "v1").storage == "v1-header"


def test_header_without_an_orientation_is_taken_as_it_lies_and_told(source, expected, tmp_path):
    rewrite_all(source, "LPS", "blank")
    data_root = tmp_path / "data"
    assert list_checksums(source, data_root, "header") == expected
    assert list_problems(data_root) == {"orientation_unknown": len(expected)}
    assert list_notes(data_root)[0].startswith(f"{len(expected)} volumes are not LPS")


@pytest.mark.parametrize("orientation", ["", "ras", "LR", "LLS", "xyz", "Header", "LPSX"])
def test_orientation_that_is_none_is_refused(source, tmp_path, orientation):
    with pytest.raises(ConfigurationError, match=r"--orientation: there is no orientation .*, or `header`"):
        open_source(str(source), tmp_path, None, orientation)


def test_orientation_is_for_folders_alone(tmp_path):
    with pytest.raises(ConfigurationError, match="arrays of hf://datasets/owner/CT-RATE are taken as they lie"):
        open_source("hf://datasets/owner/CT-RATE", tmp_path, None, "header")
