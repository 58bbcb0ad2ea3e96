"""Mirrors of CT-RATE in a folder: flat, of one version or split, with copies and links; files are found by name."""

from __future__ import annotations

import gzip
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.data_roots import assert_every_volume_is_converted, convert, ingest
from support.sources import edit_rows, find_volume, flatten

from ctclip_model.data.phantom import PhantomConfig, make_phantoms
from ctclip_model.errors import ConfigurationError
from tasks.sources import listing
from tasks.sources.address import parse_address
from tasks.sources.catalogue import Catalogue
from tasks.sources.local_source import LocalSource
from tasks.sources.open_source import open_source
from tasks.sources.presence import describe_presence, find_shortfall
from tasks.sources.tables import METADATA, REPORTS
from warehouse.store import query

CONFIG = PhantomConfig(seed=4, train_patients=2, valid_patients=2)
COUNT = 8  # volumes of these phantoms


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms")
    make_phantoms(folder, CONFIG, processes=1)
    return folder


@pytest.fixture(scope="module")
def older_phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same phantoms as CT-RATE's version v1 stores them."""
    folder = tmp_path_factory.mktemp("older_phantoms")
    make_phantoms(folder, PhantomConfig(**vars(CONFIG) | {"storage": "v1"}), processes=1)
    return folder


@pytest.fixture
def source(phantoms: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(phantoms, tmp_path / "source"))


def read(folder: Path, tmp_path: Path, **options: str) -> tuple[LocalSource, Catalogue]:
    opened = LocalSource(folder, tmp_path / "data", **options)
    return opened, opened.read()[1]


def list_checksums(data_root: Path) -> dict[str, int]:
    """Checksum of each converted volume's voxels."""
    return dict(query(data_root, "select volume_name, crc32 from current_shard_volumes"))


def rename_all(folder: Path, rename: Callable[[Path], Path]) -> None:
    for path in list(folder.rglob("*.nii.gz")):
        new = rename(path)
        new.parent.mkdir(parents=True, exist_ok=True)
        path.rename(new)


def unpack(path: Path) -> Path:
    path.write_bytes(gzip.decompress(path.read_bytes()))
    return path.with_suffix("")


ARRANGEMENTS: dict[str, Callable[[Path], Path]] = {
    "one folder": lambda path: path.parents[4] / path.name,
    "a folder for each patient": lambda path: path.parents[4] / "ct" / path.parents[1].name / path.name,
    "without `dataset`": lambda path: path.parents[4] / path.relative_to(path.parents[4] / "dataset"),
    "capital letters": lambda path: path.with_name(path.name.upper()),
    "unpacked": unpack,
}


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_volumes_are_found_by_name_wherever_they_lie(source, phantoms, tmp_path, arrangement):
    rename_all(source, ARRANGEMENTS[arrangement])
    opened, catalogue = read(source, tmp_path)
    expected = read(phantoms, tmp_path)[1]
    assert catalogue.count_files() == expected.count_files() == (len(expected.volumes),) * 2
    assert [row["volume_name"] for row in catalogue.volumes] == [row["volume_name"] for row in expected.volumes]
    assert all((source / row["path"]).is_file() for row in catalogue.volumes)
    assert (opened.storage, opened.kind, catalogue.notes, catalogue.errors) == ("v2", "phantom", [], [])


def test_flat_folder_gives_the_shards_of_the_layout(phantoms, tmp_path):
    flat = flatten(phantoms, tmp_path / "flat")
    for folder, data_root in ((phantoms, tmp_path / "a"), (flat, tmp_path / "b")):
        ingest(folder, data_root)
        convert(data_root)
    assert_every_volume_is_converted(tmp_path / "b")
    assert list_checksums(tmp_path / "a") == list_checksums(tmp_path / "b")
    ingest(flat, tmp_path / "a")
    assert convert(tmp_path / "a")["done"] == 0  # another place is no other content


@pytest.mark.parametrize("is_flat", [False, True])
def test_v1_is_known_by_its_folders_or_by_its_values(older_phantoms, phantoms, tmp_path, is_flat):
    older = flatten(older_phantoms, tmp_path / "flat") if is_flat else older_phantoms
    opened, catalogue = read(older, tmp_path)
    assert opened.storage == "v1"
    assert describe_presence(opened, catalogue) == [f"{COUNT} of {COUNT} volumes are there, stored as v1"]
    for folder, data_root in ((phantoms, tmp_path / "a"), (older, tmp_path / "b")):
        ingest(folder, data_root)
        convert(data_root)
    assert list_checksums(tmp_path / "a") == list_checksums(tmp_path / "b")


def test_v2_goes_before_v1_and_the_version_of_the_last_ingest_before_both(source, older_phantoms, tmp_path):
    shutil.copytree(older_phantoms / "dataset", source / "dataset", dirs_exist_ok=True)
    opened, catalogue = read(source, tmp_path)
    assert (opened.storage, catalogue.notes) == ("v2", [])
    ingest(LocalSource(source, tmp_path / "data", "v1"), tmp_path / "data")
    again = open_source(str(source), tmp_path / "data", None)
    assert again.storage == "v1"
    shutil.rmtree(source / "dataset/train")
    shutil.rmtree(source / "dataset/valid")
    assert open_source(None, tmp_path / "data", None).storage == "v2"  # v1 is not there any more


def test_files_of_another_version_are_told(source, older_phantoms, tmp_path):
    shutil.copytree(older_phantoms / "dataset/train", source / "dataset/train")
    shutil.rmtree(source / "dataset/train_fixed")
    opened, catalogue = read(source, tmp_path)
    there, count = catalogue.count_files()
    assert there < count
    assert describe_presence(opened, catalogue) == [
        f"{there} of {count} volumes are there (train 0 of {count - there}, valid {there} of {there})",
        f"volumes of another --storage alone: {count - there} (train_1_a_1, train_1_b_1, …)",
    ]
    opened, catalogue = read(source, tmp_path, version="v1")
    assert opened.storage == "v1"
    assert catalogue.count_files()[0] == count - there


def test_one_split_alone_is_told(source, tmp_path):
    for path in [path for path in source.rglob("*train*") if path.is_file()]:
        path.unlink()
    count = len(list(source.rglob("*.nii.gz")))
    opened, catalogue = read(source, tmp_path)
    assert describe_presence(opened, catalogue) == [f"{count} of {count} volumes are there", "no train split"]


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda source: [path.unlink() for path in source.rglob("*.nii.gz")],
         r"0 of 8 volumes of the tables are in file:///.*/source\. Looked for "
         r"dataset/train_fixed/train_1/train_1_a/train_1_a_1\.nii\.gz, and for train_1_a_1\.nii\.gz in every other "
         r"folder\. There: 8 tables"),
        (lambda source: rename_all(source, lambda path: path.with_name(f"ct_{path.name}")),
         r"There: 8 tables, 8 other files \(8 \.nii\.gz; such as dataset/.*/ct_.*\.nii\.gz\)"),
        (lambda source: [path.unlink() for path in source.rglob("*_metadata.csv")],
         r"no table names a volume of .*: dataset/metadata/train_metadata.csv and dataset/metadata/validation_metadata"
         r".csv are not there\. There: 8 volumes that no table of metadata names \(train_1_a_1, train_1_b_1, …\), 6 t"),
        (lambda source: [(path.unlink(), path.symlink_to("gone")) for path in source.rglob("*.nii.gz")],
         r"There: 8 tables, 8 links that lead nowhere \(dataset/"),
    ],
)  # fmt: skip
def test_folder_without_a_volume_of_its_tables_says_what_is_there(source, tmp_path, damage, line):
    damage(source)
    opened, catalogue = read(source, tmp_path)
    shortfall = find_shortfall(opened, catalogue)
    assert re.search(line, shortfall), shortfall


def test_rows_of_volumes_stay_if_not_a_single_one_is_there(source, tmp_path):
    data_root = tmp_path / "data"
    ingest(source, data_root)
    before = query(data_root, "from current_volumes order by volume_name")
    (source / "dataset").rename(source.parent / "unmounted")
    flatten(source.parent / "unmounted/radiology_text_reports", source / "dataset/radiology_text_reports")
    flatten(source.parent / "unmounted/metadata", source / "dataset/metadata")
    edit_rows(source / REPORTS["valid"], lambda row: row.update(Findings_EN="Clear."))
    ingest(source, data_root)
    assert query(data_root, "from current_volumes order by volume_name") == before
    assert query(data_root, "select distinct findings from current_reports where split = 'valid'") == [("Clear.",)]


@pytest.mark.parametrize("what", ["nothing", "10,000 other files", "volumes without a table"])
def test_folder_that_is_no_source_is_refused_and_says_what_is_there(phantoms, tmp_path, what):
    folder = tmp_path / "folder"
    folder.mkdir()
    line = "holds neither a table nor a volume of CT-RATE: looked for validation_metadata.csv.* There: nothing$"
    if what == "10,000 other files":
        for number in range(10_000):
            (folder / f"{number}.{'dcm' if number % 4 else 'nii.gz'}").touch()
        line = r"There: 10000 other files \(7500 \.dcm, 2500 \.nii\.gz; such as \d+\.dcm\)$"
    if what == "volumes without a table":
        for path in phantoms.rglob("*.nii.gz"):
            shutil.copy(path, folder)
        line = r"holds no table of CT-RATE.* There: 8 volumes that no table of metadata names \(train_1_a_1, train_1_"
    with pytest.raises(ConfigurationError, match=line):
        LocalSource(folder, tmp_path / "data")


def test_address_that_is_no_folder_is_refused(source, tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    for path, line in (
        (find_volume(source, "valid_1_a_1"), "is a file: give the folder"),
        (tmp_path / "nowhere", "is no folder that can be read: No such file"),
        (tmp_path / "loop", "is no folder that can be read: Too many levels of symbolic links"),
    ):
        with pytest.raises(ConfigurationError, match=line):
            open_source(str(path), tmp_path / "data", None)


def test_folder_that_cannot_be_read_is_refused(source, tmp_path, monkeypatch):
    """Its volumes would seem to be missing. Root reads every folder, so the refusal is made here."""
    scan = os.scandir

    def refuse(folder: str) -> os.ScandirIterator[str]:
        if str(folder).rstrip("/").endswith("dataset/valid_fixed"):
            raise PermissionError(13, "Permission denied")
        return scan(folder)

    monkeypatch.setattr(listing.os, "scandir", refuse)
    with pytest.raises(ConfigurationError, match="dataset/valid_fixed cannot be read: Permission denied"):
        LocalSource(source, tmp_path / "data")


def test_file_that_cannot_be_read_is_an_error_of_its_volume(source, tmp_path, monkeypatch):
    def refuse(path: Path) -> str:
        if path.name == "valid_1_a_1.nii.gz":
            raise PermissionError(13, "Permission denied")
        return path.name

    monkeypatch.setattr("tasks.sources.file_hashes.sha256_of", refuse)
    catalogue = read(source, tmp_path)[1]
    assert [(error.item, error.reason) for error in catalogue.errors] == [("valid_1_a_1", "unreadable_file")]
    assert [row["volume_name"] for row in catalogue.volumes if row["sha256"] is None] == ["valid_1_a_1"]
    assert catalogue.notes == []


def test_copies_of_a_volume_are_told_and_copies_that_differ_are_refused(source, tmp_path):
    rename_all(source, lambda path: source / "ct" / path.name)
    name = "valid_1_a_1.nii.gz"
    (source / "more").mkdir()
    shutil.copy(source / "ct" / name, source / "more" / name)
    os.link(source / "ct/valid_2_a_1.nii.gz", source / "more/valid_2_a_1.nii.gz")  # the same file twice
    catalogue = read(source, tmp_path)[1]
    assert catalogue.notes == [
        f"volumes in several places: 1, such as valid_1_a_1: ct/{name} is used, more/{name} is not"
    ]
    assert catalogue.errors == []
    (source / "more" / name).write_bytes(b"other voxels")
    catalogue = read(source, tmp_path)[1]
    assert [str(error) for error in catalogue.errors] == [
        f"valid_1_a_1: different files have its name: ct/{name}, more/{name} [ambiguous_file]"
    ]
    assert catalogue.count_files() == (COUNT - 1, COUNT)
    assert catalogue.notes == []


def test_path_of_ct_rate_goes_before_copies_and_copies_before_masks(source, tmp_path):
    volume = find_volume(source, "valid_1_a_1")
    mask = source / "dataset/ts_seg/ts_total" / volume.relative_to(source / "dataset")
    copy = source / "copies" / volume.name
    for path in (mask, copy):
        path.parent.mkdir(parents=True)
        path.write_bytes(path.parent.name.encode())
    for remaining in (volume, copy, mask):
        catalogue = read(source, tmp_path)[1]
        (path,) = (row["path"] for row in catalogue.volumes if row["volume_name"] == "valid_1_a_1")
        assert (source / path, catalogue.errors) == (remaining, [])
        remaining.unlink()


def test_masks_do_not_tell_the_version(older_phantoms, tmp_path):
    source = Path(shutil.copytree(older_phantoms, tmp_path / "source"))
    for path in list(source.rglob("*.nii.gz")):
        mask = source / "dataset/ts_seg" / f"{path.parents[2].name}_fixed" / path.relative_to(path.parents[2])
        mask.parent.mkdir(parents=True, exist_ok=True)
        mask.write_bytes(b"mask")
    opened, catalogue = read(source, tmp_path)
    assert opened.storage == "v1"
    assert not [row for row in catalogue.volumes if "ts_seg" in row["path"]]


def test_links_are_followed_once_and_never_upwards(source, tmp_path):
    elsewhere = tmp_path / "disk"
    (source / "dataset/valid_fixed").rename(elsewhere)
    (source / "dataset/valid_fixed").symlink_to(elsewhere)
    (elsewhere / "again").symlink_to(elsewhere)
    (source / "up").symlink_to("..")
    (source / "itself").symlink_to("itself")
    (source / "also").symlink_to(source / "dataset/train_fixed")
    (tmp_path / "valid_9_a_1.nii.gz").write_bytes(b"not in the source")
    catalogue = read(source, tmp_path)[1]
    assert catalogue.count_files() == (COUNT, COUNT)
    assert catalogue.notes == []
    assert all(row["path"].startswith("dataset/") for row in catalogue.volumes)


def test_hidden_folders_and_the_data_root_are_left_out(source, tmp_path):
    names = [".snapshot/valid_9_a_1.nii.gz", "lost+found/valid_9_a_1.nii.gz", "data/raw/dataset/valid_9_a_1.nii.gz"]
    for name in names:
        (source / name).parent.mkdir(parents=True)
        (source / name).write_bytes(b"")
    assert LocalSource(source, source / "data").read()[1].notes == []
    assert LocalSource(source, tmp_path / "data").read()[1].notes == [
        "volumes in no table of metadata: 1 (valid_9_a_1)"
    ]


def test_tables_are_found_by_name_and_tables_that_differ_are_refused(source, tmp_path):
    metadata = source / METADATA["valid"]
    (source / "copy").mkdir()
    shutil.copy(metadata, source / "copy")
    metadata.rename(source / "VALIDATION_METADATA.CSV")
    assert read(source, tmp_path)[1].count_files() == (COUNT, COUNT)
    edit_rows(source / "copy" / metadata.name, lambda row: row.update(ZSpacing="1"))
    line = "holds different tables VALIDATION_METADATA.CSV and copy/validation_metadata.csv: keep one of them"
    with pytest.raises(ConfigurationError, match=line):
        LocalSource(source, tmp_path / "data").read()


def move_on(source: Path, tmp_path: Path) -> Path:
    """A link to a snapshot without the volume valid_1_a_1, which moved on from the snapshot `source`."""
    link, later = tmp_path / "current", Path(shutil.copytree(source, tmp_path / "later"))
    find_volume(later, "valid_1_a_1").unlink()
    for table in (METADATA["valid"], REPORTS["valid"]):
        lines = (later / table).read_text().splitlines(keepends=True)
        (later / table).write_text("".join(line for line in lines if not line.startswith("valid_1_a_1.")))
    link.unlink(missing_ok=True)
    link.symlink_to(later)
    return link


@pytest.mark.parametrize("recorded_as", ["link", "target"])
def test_volumes_are_withdrawn_when_a_link_moves_on(source, tmp_path, recorded_as):
    """Older versions recorded the target of a link."""
    data_root, link = tmp_path / "data", tmp_path / "current"
    link.symlink_to(source)
    if recorded_as == "target":
        ingest(source, data_root)
    ingest(open_source(str(link), data_root, None), data_root)
    move_on(source, tmp_path)
    opened = open_source(None, data_root, None)
    assert opened.name == f"file://{link}"
    ingest(opened, data_root)
    assert query(data_root, "select count(*), count(distinct source), any_value(source) from current_volumes") == [
        (COUNT - 1, 1, f"file://{link}")
    ]
    shutil.rmtree(source)  # nothing is read from it any more
    assert convert(data_root)["done"] == COUNT - 1
    assert query(data_root, "select count(*) from current_wanted where item = 'valid_1_a_1'") == [(0,)]


def test_target_of_a_link_is_a_part_of_its_revision(source, tmp_path):
    link, copy = tmp_path / "current", Path(shutil.copytree(source, tmp_path / "copy"))
    revisions = []
    for target in (source, copy, source):
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        opened = LocalSource(link, tmp_path / "data")
        assert opened.find_unchanged_revision() in (None, *revisions)
        revisions.append(opened.read()[0])
    assert revisions[0] == revisions[2] != revisions[1]
    assert LocalSource(source, tmp_path / "data").read()[0] != revisions[0]


def test_storage_of_a_link_that_was_recorded_as_its_target_is_known(older_phantoms, source, tmp_path):
    shutil.copytree(older_phantoms / "dataset", source / "dataset", dirs_exist_ok=True)
    ingest(LocalSource(source, tmp_path / "data", "v1"), tmp_path / "data")
    (tmp_path / "current").symlink_to(source)
    assert open_source(str(tmp_path / "current"), tmp_path / "data", None).storage == "v1"


def test_source_is_named_as_it_was_given(source, tmp_path, monkeypatch):
    (tmp_path / "links").mkdir()
    (tmp_path / "links/current").symlink_to(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PWD", str(tmp_path))
    for text in ("links/current", "file:links/current/", f"{tmp_path}/links/../links/./current"):
        assert str(parse_address(text)) == f"file://{tmp_path}/links/current"
    assert str(parse_address("links/current/../source")) == f"file://{source}"  # as the operating system goes back
    monkeypatch.chdir(tmp_path / "links/current")
    assert str(parse_address(".")) == f"file://{source}"
    monkeypatch.setenv("PWD", str(tmp_path / "links/current"))
    assert str(parse_address(".")) == f"file://{tmp_path}/links/current"
