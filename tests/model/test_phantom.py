"""Phantoms: CT-RATE's layout, volumes and reports that agree, and a data set that a histogram does not solve."""

from __future__ import annotations

import csv
import gzip
import hashlib
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ctclip_model.data.abnormalities import ABNORMALITIES, prompt_pair
from ctclip_model.data.names import SUFFIX, Storage, parse_listed_name, parse_volume_name
from ctclip_model.data.phantom import ANOMALIES, VISIBLE_ABNORMALITIES, PhantomConfig, make_phantoms
from ctclip_model.data.phantom.anatomy import Reconstruction, Scan, draw_body, render
from ctclip_model.data.phantom.dataset import draw_abnormalities, draw_reconstruction
from ctclip_model.data.phantom.reports import write_report
from ctclip_model.errors import ConfigurationError

Rows = dict[str, dict[str, str]]


def read_rows(folder: Path, path: str) -> Rows:
    with (folder / "dataset" / path).open(newline="") as file:
        return {row.pop("VolumeName"): row for row in csv.DictReader(file)}


def digest(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def load(folder: Path, name: str, storage: Storage = "v2") -> nib.Nifti1Image:
    return nib.load(folder / parse_volume_name(name).path(storage))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms")
    make_phantoms(folder, PhantomConfig(seed=1, train_patients=12, valid_patients=4), processes=1)
    return folder


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("broken")
    make_phantoms(folder, PhantomConfig(seed=1, train_patients=8, valid_patients=1, anomalies=ANOMALIES), processes=1)
    return folder


def test_tables_have_the_columns_and_names_of_ct_rate(folder: Path) -> None:
    metadata = read_rows(folder, "metadata/validation_metadata.csv")
    reports = read_rows(folder, "radiology_text_reports/validation_reports.csv")
    labels = read_rows(folder, "multi_abnormality_labels/valid_predicted_labels.csv")
    assert list(metadata) == list(reports) == list(labels)
    assert all(name.endswith(SUFFIX) and parse_volume_name(name).split == "valid" for name in metadata)
    first = next(iter(metadata))
    assert len(metadata[first]) == 43  # and the name
    assert list(labels[first]) == list(ABNORMALITIES)
    assert list(reports[first]) == ["ClinicalInformation_EN", "Technique_EN", "Findings_EN", "Impressions_EN"]


def test_metadata_has_the_columns_of_the_real_file(folder: Path, shared_data: Path) -> None:
    with (shared_data / "data/ct_rate/validation_metadata.csv").open(newline="") as real:
        header = next(csv.reader(real))
    with (folder / "dataset/metadata/train_metadata.csv").open(newline="") as ours:
        assert next(csv.reader(ours)) == header


def test_volumes_are_what_their_rows_say(folder: Path) -> None:
    rows = read_rows(folder, "metadata/train_metadata.csv")
    for name, row in rows.items():
        image = load(folder, name)
        spacing = float(row["XYSpacing"].strip("[]").split(",")[0])
        assert image.get_data_dtype() == np.int16
        assert (image.dataobj.slope, image.dataobj.inter) == (1, 0)
        assert image.header.get_zooms() == pytest.approx((spacing, spacing, float(row["ZSpacing"])))
        assert image.shape == (int(row["Columns"]), int(row["Rows"]), int(row["NumberofSlices"]))
        assert np.asarray(image.dataobj)[0, 0, 0] == int(row["RescaleIntercept"])  # padding


def test_reconstructions_of_a_scan_share_report_and_labels_but_not_voxels(folder: Path) -> None:
    reports = read_rows(folder, "radiology_text_reports/train_reports.csv")
    labels = read_rows(folder, "multi_abnormality_labels/train_predicted_labels.csv")
    repeated = [name for name in reports if name.endswith("_2.nii.gz")]
    assert repeated
    for name in repeated:
        other = name.replace("_2.nii.gz", "_1.nii.gz")
        assert reports[name] == reports[other]
        assert labels[name] == labels[other]
        assert not np.array_equal(load(folder, name).dataobj, load(folder, other).dataobj)


def test_a_configuration_makes_the_same_files_with_any_number_of_processes(tmp_path: Path) -> None:
    config = PhantomConfig(seed=5, train_patients=51, valid_patients=2)
    make_phantoms(tmp_path / "one", config, processes=1)
    make_phantoms(tmp_path / "two", config, processes=2)
    assert digest(tmp_path / "one") == digest(tmp_path / "two")


def test_v1_storage_holds_the_same_volume_before_rescaling(tmp_path: Path) -> None:
    names = []
    for storage in ("v2", "v1"):
        config = PhantomConfig(seed=2, train_patients=6, valid_patients=0, storage=storage)
        make_phantoms(tmp_path / storage, config, processes=1)
    rows = read_rows(tmp_path / "v1", "metadata/train_metadata.csv")
    for name, row in rows.items():
        stored = np.asarray(load(tmp_path / "v1", name, "v1").dataobj)
        hu = stored * int(row["RescaleSlope"]) + int(row["RescaleIntercept"])
        np.testing.assert_array_equal(hu, load(tmp_path / "v2", name).dataobj)
        names.append(row["RescaleIntercept"])
    assert "-8192" in names


def test_anomalies_are_where_they_were_asked_for(broken: Path) -> None:
    names = {anomaly: f"train_{number}_a_1{SUFFIX}" for number, anomaly in enumerate(ANOMALIES, start=1)}
    metadata = read_rows(broken, "metadata/train_metadata.csv")
    reports = read_rows(broken, "radiology_text_reports/train_reports.csv")
    assert [name for name, row in metadata.items() if not row["ZSpacing"]] == [names["missing_zspacing"]]
    assert load(broken, names["wrong_header"]).header.get_zooms() == (1, 1, 1)
    listed = (broken / "dataset/metadata/no_chest_train.txt").read_text().splitlines()
    assert f"{parse_listed_name(listed[0])}{SUFFIX}" == names["no_chest"]
    assert not (broken / parse_volume_name(names["missing_file"]).path()).exists()
    with pytest.raises(EOFError), gzip.open(broken / parse_volume_name(names["truncated_gzip"]).path()) as file:
        file.read()
    assert reports[names["impression_not_given"]]["Impressions_EN"] == "Not given."
    assert not np.any(load(broken, names["all_zero"]).dataobj)


def test_unknown_anomaly_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="upside_down"):
        PhantomConfig(anomalies=("upside_down",))


def test_findings_are_independent_of_one_another() -> None:
    drawn = [draw_abnormalities(np.random.default_rng(seed)) for seed in range(3000)]
    present = np.array([[name in findings for name in VISIBLE_ABNORMALITIES] for findings in drawn])
    between = np.corrcoef(present.T) - np.eye(len(VISIBLE_ABNORMALITIES))
    assert np.abs(between).max() < 0.08
    assert len(VISIBLE_ABNORMALITIES) >= 8


@pytest.mark.parametrize("abnormality", VISIBLE_ABNORMALITIES)
def test_a_visible_abnormality_changes_the_volume(abnormality: str) -> None:
    body = draw_body(np.random.default_rng(0))
    reconstruction = Reconstruction((48, 48, 32), (7.0, 7.0, 9.0), 0.0, True, -1024, 0)
    without = render(Scan(body, {}, seed=4), reconstruction)
    with_it = render(Scan(body, {abnormality: "left"}, seed=4), reconstruction)
    assert np.count_nonzero(without != with_it) >= 30


@pytest.mark.parametrize("split", ["train", "valid"])
def test_reports_name_what_is_present_and_hold_no_prompt(split: str) -> None:
    rng = np.random.default_rng(0)
    prompts = [prompt.lower() for abnormality in ABNORMALITIES for prompt in prompt_pair(abnormality)]
    for _ in range(300):
        report = write_report(draw_abnormalities(rng), split, rng)
        text = f"{report.findings} {report.impression}".lower()
        assert not [prompt for prompt in prompts if prompt in text]


def test_a_finding_is_stated_and_an_absent_one_never_affirmed() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        assert "pleural" in write_report({"Pleural effusion": "left"}, "train", rng).findings.lower()
        report = write_report({}, "train", rng)
        denials = [line for line in report.findings.split(". ") if "pleural" in line.lower()]
        assert all(" no" in f" {line.lower()}" for line in denials)
        assert "pleural" not in report.impression


def test_some_wording_is_of_valid_reports_alone() -> None:
    texts = {}
    for split in ("train", "valid"):
        rng = np.random.default_rng(0)
        texts[split] = " ".join(write_report(draw_abnormalities(rng), split, rng).findings for _ in range(200))
    assert "One notes" in texts["valid"]
    assert "One notes" not in texts["train"]


def test_a_histogram_does_not_tell_the_abnormalities(histograms: tuple[np.ndarray, np.ndarray]) -> None:
    """Logistic regression on 32 bins must fail: only its position identifies an abnormality."""
    features, labels = histograms
    half = len(features) // 2
    areas = []
    for label in labels.T:
        classifier: Callable = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
        classifier.fit(features[:half], label[:half])
        areas.append(roc_auc_score(label[half:], classifier.decision_function(features[half:])))
    assert np.mean(areas) <= 0.70


@pytest.fixture(scope="module")
def histograms() -> tuple[np.ndarray, np.ndarray]:
    rows, labels = [], []
    for seed in range(600):
        rng = np.random.default_rng([7, seed])
        drawn = draw_abnormalities(rng)
        volume = render(Scan(draw_body(rng), drawn, seed), draw_reconstruction(-1024, rng))
        rows.append(np.histogram(np.clip(volume, -1000, 1000), bins=32, range=(-1000, 1000))[0] / volume.size)
        labels.append([name in drawn for name in VISIBLE_ABNORMALITIES])
    return np.array(rows), np.array(labels)
