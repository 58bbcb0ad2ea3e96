"""Strict reading of CT-RATE's tables, and the changes between two revisions."""

import re
from datetime import date
from pathlib import Path

import pytest
from support.reports import write_csv

from ctclip_model.data.abnormalities import ABNORMALITIES
from tasks.sources.changes import INGESTED, compare
from tasks.sources.local_source import LocalSource
from tasks.sources.tables import LABELS, METADATA, NO_CHEST, REPORTS, read_table, volume_row

METADATA_COLUMNS = [
    "VolumeName",
    "XYSpacing",
    "ZSpacing",
    "RescaleSlope",
    "RescaleIntercept",
    "PatientAge",
    "StudyDate",
]
NOTHING = {table: {} for table in INGESTED}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two reconstructions of one validation scan, with files, report and labels."""
    names = ["valid_1_a_1.nii.gz", "valid_1_a_2.nii.gz"]
    spacing = ["[0.7, 0.7]", "1.5", "1", "-1024", "036Y", "20210427"]
    write_csv(tmp_path / METADATA["valid"], METADATA_COLUMNS, [[name, *spacing] for name in names])
    write_csv(
        tmp_path / REPORTS["valid"],
        ["VolumeName", "ClinicalInformation_EN", "Technique_EN", "Findings_EN", "Impressions_EN"],
        [[name, "", "", "Lungs are clear.", "Not given."] for name in names],
    )
    write_csv(tmp_path / LABELS["valid"], ["VolumeName", *ABNORMALITIES], [[name, *"0" * 18] for name in names])
    (tmp_path / NO_CHEST["valid"]).write_text("dataset/valid/valid_1/valid_1_a/valid_1_a_2.nii.gz\n")
    for name in names:
        path = tmp_path / "dataset/valid_fixed/valid_1/valid_1_a" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"voxels of " + name.encode())
    return tmp_path


def read(folder: Path, data_root: Path):
    return LocalSource(folder, data_root).read()


def test_reports_and_labels_are_counted_by_scan(folder, tmp_path):
    _, catalogue = read(folder, tmp_path / "data")
    assert [row["volume_name"] for row in catalogue.volumes] == ["valid_1_a_1", "valid_1_a_2"]
    assert [row["scan_id"] for row in catalogue.reports] == ["valid_1_a"]
    assert list(catalogue.published_labels) == ["valid_1_a"]
    assert [row["volume_name"] for row in catalogue.exclusions] == ["valid_1_a_2"]
    assert not catalogue.errors


def test_cells_become_values_and_nonsense_becomes_null(folder, tmp_path):
    _, catalogue = read(folder, tmp_path / "data")
    row = catalogue.volumes[0]
    assert (row["spacing_x_mm"], row["spacing_z_mm"]) == (0.7, 1.5)
    assert (row["patient_age_years"], row["study_date"]) == (36, date(2021, 4, 27))
    table = read_table("m.csv", b"VolumeName,XYSpacing,ZSpacing\nvalid_1_a_1,[],inf\n", "valid", ("XYSpacing",))
    (name, cells), *_ = table.rows.items()
    assert volume_row(name, cells)["spacing_x_mm"] is None
    assert volume_row(name, cells)["spacing_z_mm"] is None


def test_revision_moves_with_a_file_and_with_a_table(folder, tmp_path):
    first, _ = read(folder, tmp_path / "data")
    assert read(folder, tmp_path / "data")[0] == first
    (folder / "dataset/valid_fixed/valid_1/valid_1_a/valid_1_a_1.nii.gz").write_bytes(b"other voxels")
    second, _ = read(folder, tmp_path / "data")
    (folder / NO_CHEST["valid"]).write_text("")
    third, _ = read(folder, tmp_path / "data")
    assert len({first, second, third}) == 3


def test_whatever_moves_at_a_folder_is_noticed_without_reading_it(folder, tmp_path):
    source = LocalSource(folder, tmp_path / "data")
    assert source.find_unchanged_revision() is None
    (folder / "dataset/valid_fixed/valid_1/valid_1_a/valid_1_a_2.nii.gz").rename(folder / "elsewhere")
    revision, _ = source.read()
    assert LocalSource(folder, tmp_path / "data").find_unchanged_revision() == revision
    for move in (
        lambda: (folder / "elsewhere").rename(folder / "dataset/valid_fixed/valid_1/valid_1_a/valid_1_a_2.nii.gz"),
        lambda: (folder / "dataset/valid_fixed/valid_1/valid_1_a/valid_1_a_1.nii.gz").write_bytes(b"others"),
        lambda: (folder / LABELS["valid"]).write_text((folder / LABELS["valid"]).read_text() + "\n"),
        lambda: (folder / REPORTS["valid"]).unlink(),
        lambda: (folder / LABELS["train"]).write_text("VolumeName\n"),
    ):
        move()
        assert LocalSource(folder, tmp_path / "data").find_unchanged_revision() is None
        revision, _ = read(folder, tmp_path / "data")
        assert LocalSource(folder, tmp_path / "data").find_unchanged_revision() == revision


def test_missing_file_leaves_its_volume_without_hash(folder, tmp_path):
    (folder / "dataset/valid_fixed/valid_1/valid_1_a/valid_1_a_1.nii.gz").unlink()
    _, catalogue = read(folder, tmp_path / "data")
    assert [row["sha256"] is None for row in catalogue.volumes] == [True, False]


def test_volume_without_metadata_row_is_an_error(folder, tmp_path):
    write_csv(folder / METADATA["valid"], METADATA_COLUMNS, [["valid_1_a_1.nii.gz", "[1, 1]", "1", "1", "0", "", ""]])
    _, catalogue = read(folder, tmp_path / "data")
    assert [(error.item, error.reason) for error in catalogue.errors] == [("valid_1_a_2", "missing_metadata")]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"../../etc/passwd,1", "bad_name"),
        (b"train_1_a_1.nii.gz,1", "wrong_split"),
        (b"valid_2_a_1.nii.gz", "malformed_row"),
        (b"valid_1_a_1,2", "duplicate_row"),
    ],
)
def test_bad_row_is_an_error_and_the_rest_is_read(line, reason):
    table = read_table("t.csv", b"VolumeName,Findings_EN\nvalid_1_a_1.nii.gz,fine\n" + line + b"\n", "valid", ())
    assert [error.reason for error in table.errors] == [reason]
    assert [str(name) for name in table.rows] == ["valid_1_a_1"]


def test_a_report_that_is_the_word_nan_is_missing_and_no_dispute(folder, tmp_path):
    path = folder / REPORTS["valid"]
    first, *rows = path.read_text().splitlines()
    path.write_text("\n".join([first, rows[0].replace("Not given.", "nan"), rows[1].replace("Not given.", "")]))
    (report,) = read(folder, tmp_path / "data")[1].reports
    assert (report["findings"], report["impression"], report["is_disputed"]) == ("Lungs are clear.", None, False)


def test_spaces_around_names_do_not_matter():
    table = read_table("t.csv", b"VolumeName , Findings_EN\n valid_1_a_1.nii.gz ,fine\n", "valid", ("Findings_EN",))
    assert [str(name) for name in table.rows] == ["valid_1_a_1"]
    assert not table.errors


def test_a_column_that_is_there_twice_is_refused():
    table = read_table("t.csv", b"VolumeName,Findings_EN,Findings_EN\n", "valid", ("Findings_EN",))
    assert [error.detail for error in table.errors] == ["has the column Findings_EN twice"]


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"Volume\nx\n", b'VolumeName\n"valid_1_a_1', b""])
def test_unreadable_table_is_one_error(content):
    table = read_table("t.csv", content, "valid", ())
    assert not table.is_readable
    assert [error.reason for error in table.errors] == ["unreadable_csv"]


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer, not the file: fetch it"),
        (b"<!DOCTYPE html>\n<html>Log in</html>\n", "is a web page"),
        (b'{"error": "Access denied"}', "is a JSON text"),
        (b"", "has no column VolumeName$"),
        (b"Volume\n", "has no column VolumeName$"),
    ],
)
def test_file_in_place_of_a_table_is_named(content, line):
    (error,) = read_table("t.csv", content, "valid", ()).errors
    assert re.search(line, error.detail)


def test_labels_that_differ_between_reconstructions_are_disputed(folder, tmp_path):
    rows = [["valid_1_a_1.nii.gz", "1", *"0" * 17], ["valid_1_a_2.nii.gz", *"0" * 18]]
    write_csv(folder / LABELS["valid"], ["VolumeName", *ABNORMALITIES], rows)
    _, catalogue = read(folder, tmp_path / "data")
    disputed = [row["abnormality"] for row in catalogue.published_labels["valid_1_a"] if row["is_disputed"]]
    assert disputed == [ABNORMALITIES[0]]


def test_label_that_is_neither_0_nor_1_is_an_error(folder, tmp_path):
    write_csv(folder / LABELS["valid"], ["VolumeName", *ABNORMALITIES], [["valid_1_a_1.nii.gz", "2", *"0" * 17]])
    _, catalogue = read(folder, tmp_path / "data")
    assert [error.reason for error in catalogue.errors] == ["bad_label"]


def test_only_what_changed_is_recorded(folder, tmp_path):
    _, catalogue = read(folder, tmp_path / "data")
    first = compare(catalogue, NOTHING, "file:///x", "r1")
    assert first.count("new") == 2
    current = {
        table: {
            " ".join(row[column] for column in keys): (row["fingerprint"], "file:///x") for row in first.rows[table]
        }
        for table, (keys, _) in INGESTED.items()
    }
    again = compare(catalogue, current, "file:///x", "r2")
    assert again.describe() == "nothing changed"
    current["volumes"]["valid_9_a_1"] = ("gone", "file:///x")
    current["volumes"]["valid_1_a_1"] = ("other", "file:///x")
    third = compare(catalogue, current, "file:///x", "r3")
    assert (third.changed["volumes"], third.withdrawn["volumes"]) == (["valid_1_a_1"], ["valid_9_a_1"])


def test_nothing_is_withdrawn_from_a_table_that_cannot_be_read(folder, tmp_path):
    (folder / REPORTS["valid"]).write_bytes(b"\xff\xfe")
    _, catalogue = read(folder, tmp_path / "data")
    changes = compare(catalogue, NOTHING | {"reports": {"valid_1_a": ("x", "file:///x")}}, "file:///x", "r")
    assert changes.count("withdrawn", "reports") == 0


def test_nothing_is_withdrawn_from_a_table_that_is_not_there(folder, tmp_path):
    (folder / NO_CHEST["valid"]).unlink()
    _, catalogue = read(folder, tmp_path / "data")
    known = {"valid_1_a_2 no_chest": ("x", "file:///x")}
    assert compare(catalogue, NOTHING | {"exclusions": known}, "file:///x", "r").count("withdrawn", "exclusions") == 0


def test_damaged_cache_of_hashes_is_made_anew(folder, tmp_path):
    revision, _ = read(folder, tmp_path / "data")
    (cache,) = (tmp_path / "data/raw").glob("*.parquet")
    cache.write_bytes(b"PAR1 damaged")
    assert read(folder, tmp_path / "data")[0] == revision


def test_byte_that_is_no_utf8_in_a_list_is_one_error(folder, tmp_path):
    (folder / NO_CHEST["valid"]).write_bytes(b"valid_1_a_1\nvalid_1_\xff_2\n")
    _, catalogue = read(folder, tmp_path / "data")
    assert [row["volume_name"] for row in catalogue.exclusions] == ["valid_1_a_1"]
    assert [error.reason for error in catalogue.errors] == ["bad_name"]
