"""Selections of volumes: by split, file, name or glob. Names that nobody ingested and missing splits are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.records import report_row, volume_row, write_run

from ctclip_model.errors import ConfigurationError, MissingInputError
from tasks.run.selection import Selection
from tasks.run.splits import require_split
from warehouse import store

NAMES = ["valid_1_a_1", "train_1_a_1", "train_2_a_1"]


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two volumes of valid, one of them without a file, one volume of train without a file, and a report of valid."""
    root = tmp_path_factory.mktemp("root")
    without = [volume_row(name, size_bytes=None, sha256=None) for name in ("valid_2_a_1", "train_1_a_1")]
    reports = [report_row("valid_1_a", split="valid")]
    write_run(root, 0, "ingest", volumes=[volume_row("valid_1_a_1"), *without], reports=reports)
    store.publish(root)
    return root


def test_volumes_are_selected_by_file_name_or_glob(tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("\ufefftrain_2_a_1.nii.gz\r\n\r\n", encoding="utf-8")
    assert Selection(volumes=str(names)).choose(NAMES) == ["train_2_a_1"]
    assert Selection(volumes="train_2_a_1.nii.gz").choose(NAMES) == ["train_2_a_1"]
    assert Selection(volumes="train_*_a_1").choose(NAMES) == ["train_1_a_1", "train_2_a_1"]
    assert Selection("train", "*_1_a_1", 1).choose(NAMES) == ["train_1_a_1"]


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (None, r"is no file, no name of a volume, and no glob such as 'valid_1_\*'"),
        (b"", "the file names no volume"),
        (b"../../etc/passwd\n", "is not split_patient_scan_recon"),
        (b"valid_1_a_1\n\xff\xfe\n", "the file cannot be read"),
    ],
)
def test_file_that_names_no_volumes_is_refused_at_once(tmp_path, content, line):
    path = tmp_path / "names.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=rf"--volumes .*names\.txt: .*{line}"):
        Selection(volumes=str(path))
    with pytest.raises(ConfigurationError, match="is no file"):
        Selection(volumes=str(tmp_path))


@pytest.mark.parametrize(
    ("selection", "line"),
    [
        (Selection(volumes="valid_9_a_1"), "names that were never ingested: valid_9_a_1$"),
        (Selection(volumes="valid_9*"), r"valid_9\* selects none of the ingested volumes$"),
        (Selection("train", "valid_1_a_1"), "none of the ingested volumes of the train split$"),
    ],
)
def test_volumes_that_were_never_ingested_are_refused(data_root, selection, line):
    with pytest.raises(ConfigurationError, match=line):
        selection.check(data_root)


def test_every_unknown_name_of_a_file_counts(data_root, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("valid_1_a_1\n" + "\n".join(f"valid_{number}_z_1" for number in range(1, 6)))
    line = r"names that were never ingested: valid_1_z_1, valid_2_z_1, valid_3_z_1, …$"
    with pytest.raises(ConfigurationError, match=line):
        Selection(volumes=str(names)).check(data_root)


@pytest.mark.parametrize(
    ("selection", "line"),
    [
        (Selection("train"), "0 of 1 volumes of the train split have a file in their source"),
        (Selection("external"), r"the external split is missing: the ingested volumes are of train \(1\), valid \(2\)"),
        (Selection(volumes="valid_2_a_1"), "no selected volume has a file in its source"),
    ],
)
def test_selection_without_a_file_is_told(data_root, selection, line):
    selection.check(data_root)
    with pytest.raises(MissingInputError, match=line):
        selection.require_files(data_root)


def test_selection_with_files_passes(data_root):
    for selection in (Selection(), Selection("valid"), Selection(volumes="valid_*"), Selection("valid", "valid_1_a_1")):
        selection.require_files(data_root)


def test_missing_split_is_named_with_the_splits_that_are_there(data_root, tmp_path):
    require_split(data_root, "valid", "external")
    require_split(data_root, "valid", items="reports")
    line = r"the train split is missing: the ingested reports are of valid \(1\) alone"
    with pytest.raises(MissingInputError, match=line):
        require_split(data_root, "train", items="reports")
    store.publish(tmp_path)
    with pytest.raises(MissingInputError, match=r"there are no volumes yet: run `ctclip ingest --source …`"):
        require_split(tmp_path, "train")
