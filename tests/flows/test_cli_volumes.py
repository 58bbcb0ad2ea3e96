"""Output, files and errors of `ctclip predict` and `ctclip embed-volume`."""

from __future__ import annotations

import csv
import gzip
import json
import math
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from support.command_line import run_ctclip, run_ctclip_process
from support.dicom import PATIENT, PRIVATE, write_series
from support.models import SLIM, make_model, save_random_model
from support.volumes import save_nifti

from ctclip_model.config import tiny
from ctclip_model.data.abnormalities import ABNORMALITIES
from ctclip_model.evaluation.decisions import Cohort, DecisionRule, Decisions, write_decisions
from ctclip_model.evaluation.predict import open_model
from ctclip_model.files import sha256_of

SPACING_MM = (9.0, 9.0, 9.0)


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data root with a model and nothing else."""
    data_root = tmp_path_factory.mktemp("data")
    save_random_model(data_root / "models" / "tiny-own", tiny())
    return data_root


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of two volumes, one with a name that a terminal cannot show."""
    folder = tmp_path_factory.mktemp("good")
    for seed, name in enumerate(("a.nii.gz", "odd\nname [b].nii")):
        voxels = np.random.default_rng(seed).integers(-1000, 500, (30, 30, 20), dtype=np.int16)
        save_nifti(folder / name, voxels, SPACING_MM)
    return folder


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Bad files, by the reason of their rejection."""
    folder = tmp_path_factory.mktemp("bad")
    voxels = np.random.default_rng(0).integers(-1000, 500, (30, 30, 20), dtype=np.int16)
    files = {reason: folder / f"{reason}.nii.gz" for reason in ("not_nifti", "truncated", "not_3d", "nan_voxels")}
    files["not_nifti"].write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(400))
    whole = gzip.compress(nib.Nifti1Image(voxels, np.diag([9.0, 9.0, 9.0, 1.0])).to_bytes())
    files["truncated"].write_bytes(whole[: len(whole) // 2])
    save_nifti(files["not_3d"], np.stack([voxels, voxels], axis=-1), SPACING_MM)
    with_nan = np.where(voxels == voxels.max(), np.nan, voxels.astype(np.float32))
    save_nifti(files["nan_voxels"], with_nan, SPACING_MM)
    files["bad_spacing"] = folder / "bad_spacing.nii"
    image = nib.Nifti1Image(voxels, None)
    image.header["pixdim"][1:4] = 0
    image.to_filename(files["bad_spacing"])
    files["missing_file"] = folder / "missing_file.nii.gz"
    files["missing_file"].symlink_to(folder / "nowhere")
    return files


def test_one_volume_is_a_line_an_abnormality(data_root, good):
    result = run_ctclip("predict", good / "a.nii.gz", "--data-root", data_root)
    assert result.returncode == 0, result.stderr
    assert "model  tiny-own (recipe tiny, cpu, float32)" in result.stdout
    assert "spacing  9 x 9 x 9 mm" in result.stdout
    lines = [line for line in result.stdout.splitlines() if line.startswith(ABNORMALITIES)]
    assert [line.split("  ")[0] for line in lines] == list(ABNORMALITIES)
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_a_folder_prints_every_volume_in_80_columns(data_root, good):
    result = run_ctclip("predict", good, "--data-root", data_root)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("Interlobular septal thickening") == 2
    assert "odd\\nname [b].nii" in result.stdout
    lines = [line for line in result.stdout.splitlines() if not line.startswith("/")]
    assert max(map(len, lines)) <= 80


def test_json_says_which_model_gave_which_file_what(data_root, good):
    result = run_ctclip("predict", good, "--json", "--data-root", data_root)
    printed = json.loads(result.stdout)
    assert (printed["model"], printed["recipe"], printed["failed"]) == ("tiny-own", "tiny", [])
    assert [volume["file"] for volume in printed["volumes"]] == [str(path) for path in sorted(good.iterdir())]
    for volume in printed["volumes"]:
        assert list(volume["probabilities"]) == list(ABNORMALITIES)
        assert all(0 < value < 1 for value in volume["probabilities"].values())
        assert volume["spacing_mm"] == [9, 9, 9]


def test_bad_files_are_a_line_each_and_the_rest_go_on(data_root, good, bad):
    result = run_ctclip("predict", *bad.values(), good / "a.nii.gz", "--json", "--data-root", data_root)
    assert result.returncode == 1
    lines = result.stderr.splitlines()
    assert len(lines) == len(bad)
    for line, (reason, path) in zip(lines, bad.items(), strict=True):
        assert line.startswith(f"ctclip: {path}: ")
        assert line.endswith(f"[{reason}]")
    printed = json.loads(result.stdout)
    assert [failure["reason"] for failure in printed["failed"]] == list(bad)
    assert len(printed["volumes"]) == 1


def test_evidence_has_a_folder_for_each_volume(data_root, good, tmp_path):
    result = run_ctclip("predict", good, "--evidence", tmp_path / "maps", "--json", "--data-root", data_root)
    assert result.returncode == 0, result.stderr
    plain = json.loads(run_ctclip("predict", good, "--json", "--data-root", data_root).stdout)["volumes"]
    printed = json.loads(result.stdout)["volumes"]
    assert [volume["probabilities"] for volume in printed] == [volume["probabilities"] for volume in plain]
    for volume, name in zip(printed, ("a", "odd_name_b_"), strict=True):
        evidence = volume["evidence"]
        assert evidence["picture"] == str(tmp_path / "maps" / name / "evidence.png")
        assert list(evidence["abnormalities"]) == list(ABNORMALITIES)
        for abnormality, facts in evidence["abnormalities"].items():
            assert 1 / (1 + math.exp(-facts["score"])) == pytest.approx(volume["probabilities"][abnormality], abs=1e-5)
            values = nib.load(facts["overlay"]).get_fdata()
            assert values.shape == (30, 30, 20)
            assert values[tuple(facts["voxel"])] == pytest.approx(facts["strongest_part"], rel=1e-3)
            assert values.max() == values[tuple(facts["voxel"])]


OWN = """
name = "own"
[[findings]]
name = "Lung nodule"
present = "Lung nodule is present."
absent = "Lung nodule is not present."
[[findings]]
name = "A/B, \\"quoted\\""
present = "Tree-in-bud pattern."
absent = "Lungs are clear."
[[findings]]
name = "A B"
present = "Lungs are clear."
absent = "Tree-in-bud pattern."
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Label set of three findings. The first is one of the 18, the last two contradict each other."""
    path = tmp_path / "own.toml"
    path.write_text(OWN)
    return path


def test_own_prompts_are_scored_zero_shot(evaluated, good, own):
    arguments = ("predict", good / "a.nii.gz", "--json", "--data-root", evaluated)
    printed = json.loads(run_ctclip(*arguments, "--findings", own).stdout)
    (plain,) = json.loads(run_ctclip(*arguments).stdout)["volumes"]
    (volume,) = printed["volumes"]
    nodule, one, other = volume["probabilities"].values()
    assert nodule == pytest.approx(plain["probabilities"]["Lung nodule"], abs=1e-6)
    assert one + other == pytest.approx(1)
    assert (printed["label_set"], printed["evaluation"]) == ("own", None)
    assert {decision["is_present"] for decision in volume["decisions"].values()} == {None}


def test_own_prompts_on_the_screen_in_rows_a_page_and_evidence(evaluated, good, own, tmp_path):
    arguments = ("predict", good, "--data-root", evaluated, "--findings", own)
    screen = run_ctclip(*arguments, "--page", tmp_path / "page.html", "--evidence", tmp_path / "maps")
    assert "uncalibrated: no evaluation of this model by labels of own yet" in screen.stdout
    assert screen.stdout.count('A/B, "quoted"') == 2
    assert "A/B, &#34;quoted&#34;" in (tmp_path / "page.html").read_text()
    assert len(list((tmp_path / "maps" / "a").glob("*.nii.gz"))) == 3
    header, *rows = csv.reader(run_ctclip(*arguments, "--csv").stdout.splitlines())
    assert {'a/b,_"quoted"', "a_b_score"} <= set(header)
    assert len(rows) == 2
    output = tmp_path / "rows.jsonl"
    assert "2 rows added" in run_ctclip(*arguments, "--output", output).stdout
    assert "2 were there" in run_ctclip(*arguments, "--output", output).stdout
    own.write_text(OWN.replace("Lungs are clear.", "No airway disease."))
    assert "2 rows added" in run_ctclip(*arguments, "--output", output).stdout


def test_a_bad_label_set_is_refused_before_a_volume_is_read(evaluated, good, own):
    own.write_text(OWN.replace('"A B"', '"a_b"').replace('"A/B, \\"quoted\\""', '"A B"'))
    result = run_ctclip("predict", good, "--data-root", evaluated, "--findings", own)
    assert (result.returncode, result.stdout) == (1, "")
    assert "'a_b' is there twice" in result.stderr


def test_evidence_in_the_place_of_a_file_is_refused_before_anything_is_read(data_root, good):
    result = run_ctclip("predict", good, "--evidence", good / "a.nii.gz", "--data-root", data_root)
    assert (result.returncode, result.stdout) == (1, "")
    assert "this is a file" in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.fixture
def evaluated(data_root: Path, tmp_path: Path) -> Path:
    """Data root whose model has rules for two abnormalities, of which one is present everywhere, one nowhere."""
    copy = Path(shutil.copytree(data_root, tmp_path / "evaluated"))
    folder = copy / "models" / "tiny-own"
    cohort = Cohort("ct-rate", "valid", "zero-shot", "published", "20261127T000000000000-abc", 652, 651)
    rules = (
        DecisionRule("Emphysema", 0.0, 0.0, -1.0, 0.83, 0.79, 900, 100),
        DecisionRule("Lung nodule", 1.0, 1.0, 0.0, 0.5, 0.25, 900, 100, has_few_patients=True),
    )
    write_decisions(folder, Decisions(sha256_of(folder / "model.safetensors"), cohort, rules))
    return copy


def test_a_model_without_an_evaluation_says_that_its_scores_are_uncalibrated(data_root, good):
    shown = run_ctclip("predict", good / "a.nii.gz", "--data-root", data_root).stdout
    assert "uncalibrated softmax scores" in shown
    assert "not a medical device" in shown
    printed = json.loads(run_ctclip("predict", good / "a.nii.gz", "--json", "--data-root", data_root).stdout)
    assert (printed["probabilities_are"], printed["evaluation"]) == ("uncalibrated softmax scores", None)
    decisions = printed["volumes"][0]["decisions"]
    assert {name: facts["score"] for name, facts in decisions.items()} == printed["volumes"][0]["probabilities"]
    assert {(facts["probability"], facts["is_present"], facts["sensitivity"]) for facts in decisions.values()} == {
        (None, None, None)
    }


@pytest.mark.parametrize("given", ["data root", "bare folder"])
def test_an_evaluated_model_decides_with_its_sensitivity_and_specificity(evaluated, good, given):
    where = ["--data-root", evaluated] if given == "data root" else ["--model", evaluated / "models" / "tiny-own"]
    result = run_ctclip("predict", good, *where)
    assert result.returncode == 0, result.stderr
    lines = [line.split() for line in result.stdout.splitlines()]
    assert lines.count(["Emphysema", "0.269", "present", "0.83", "0.79"]) == 2
    assert (
        len([line for line in lines if line[:2] == ["Lung", "nodule*"] and line[3:] == ["absent", "0.50", "0.25"]]) == 2
    )
    assert len([line for line in lines if line[:1] == ["Cardiomegaly+"] and line[2:] == ["undecided"]]) == 2
    assert "fitted on 651 patients, counted on 652 others" in result.stdout
    assert "ct-rate valid, zero-shot, published labels, evaluation 20261127T000000" in result.stdout
    assert "uncalibrated softmax" not in result.stdout
    assert max(len(line) for line in result.stdout.splitlines() if not line.startswith("/")) <= 80
    printed = json.loads(run_ctclip("predict", good, "--json", *where).stdout)
    assert printed["evaluation"]["count_patients"] == 652
    found = printed["volumes"][0]["decisions"]["Emphysema"]
    assert found == {
        "score": printed["volumes"][0]["probabilities"]["Emphysema"], "probability": pytest.approx(0.26894, abs=1e-5),
        "is_present": True, "threshold": 0.0, "sensitivity": 0.83, "specificity": 0.79,
    }  # fmt: skip


def test_csv_has_a_row_for_each_volume(evaluated, good, bad):
    result = run_ctclip("predict", good, bad["truncated"], "--csv", "--data-root", evaluated)
    assert result.returncode == 1
    assert result.stderr.splitlines()[0].endswith("[truncated]")
    rows = list(csv.DictReader(result.stdout.splitlines()))
    assert [Path(row["file"]).name for row in rows] == ["a.nii.gz", "odd\\nname [b].nii"]
    for row in rows:
        assert (row["emphysema_present"], row["lung_nodule_present"], row["cardiomegaly_present"]) == ("1", "0", "")
        assert float(row["emphysema"]) == pytest.approx(0.26894, abs=1e-5)
        assert (row["cardiomegaly"], 0 < float(row["cardiomegaly_score"]) < 1) == ("", True)
        assert row["spacing_mm"] == "9 9 9"
    both = run_ctclip("predict", good, "--csv", "--json", "--data-root", evaluated)
    assert (both.returncode, both.stdout, len(both.stderr.splitlines())) == (1, "", 1)


def test_decisions_of_other_weights_are_refused_before_a_volume_is_read(evaluated, good):
    path = evaluated / "models" / "tiny-own" / "decisions.json"
    path.write_text(path.read_text().replace('"weights_sha256": "', '"weights_sha256": "0'))
    result = run_ctclip("predict", good, "--data-root", evaluated)
    assert (result.returncode, result.stdout, len(result.stderr.splitlines())) == (1, "", 1)
    assert "belongs to other weights" in result.stderr
    assert run_ctclip("embed-volume", good, "--data-root", evaluated).returncode == 0


@pytest.mark.parametrize("suffix", [".parquet", ".npz"])
def test_latents_are_written_and_printed(data_root, good, tmp_path, suffix):
    output = tmp_path / f"latents{suffix}"
    result = run_ctclip("embed-volume", good, "--output", output, "--json", "--data-root", data_root)
    assert result.returncode == 0, result.stderr
    latents = [volume["latent"] for volume in json.loads(result.stdout)["volumes"]]
    assert [math.hypot(*latent) for latent in latents] == pytest.approx([1, 1], abs=1e-5)
    if suffix == ".parquet":
        table = pq.read_table(output)
        assert table["model_id"].to_pylist() == ["tiny-own"] * 2
        files, written = table["file"].to_pylist(), table["latent"].to_pylist()
    else:
        with np.load(output) as arrays:
            files, written = arrays["files"].tolist(), arrays["latents"]
    assert [Path(file).name for file in files] == ["a.nii.gz", "odd\\nname [b].nii"]
    assert np.array(written) == pytest.approx(np.array(latents), abs=1e-7)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["predict", "."], "there is no .nii, .nii.gz or DICOM series in this folder"),
        (["predict", "a.nii", "--model", "nonsense"], "there is no model 'nonsense'"),
        (["predict", "a.nii", "--device", "abacus"], "there is no device 'abacus'"),
        (["predict", "a.nii", "--dtype", "float8"], "float8"),
        (["embed-volume", "a.nii", "--output", "latents.txt"], "written as .parquet or .npz"),
        (["embed-volume", "a.nii", "--output", "no/folder/l.npz"], "its folder does not exist"),
    ],
)
def test_mistake_is_one_clear_line_before_anything_is_done(data_root, tmp_path, arguments, line):
    command, path, *options = arguments
    result = run_ctclip(command, tmp_path / path, *options, "--data-root", data_root)
    assert result.returncode == 1
    assert result.stdout == ""
    assert line in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_weights_without_a_tokenizer_say_what_to_put_where(good, tmp_path):
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    weights = tmp_path / "CT-CLIP_v2.pt"
    torch.save(make_model(SLIM).state_dict(), weights)
    result = run_ctclip_process("predict", good, "--model", weights, **offline)
    assert result.returncode == 1
    assert "put vocab.txt of microsoft/BiomedVLP-CXR-BERT-specialized beside it" in result.stderr.splitlines()[-1]
    assert run_ctclip("embed-volume", good, "--model", weights).returncode == 0  # this needs no tokenizer


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a NIfTI and of DICOM series of one patient: the same volume, one with her name, bad ones."""
    folder = tmp_path_factory.mktemp("scans")
    voxels = np.random.default_rng(0).integers(-1000, 500, (30, 30, 24), dtype=np.int16)
    save_nifti(folder / "same.nii.gz", voxels, SPACING_MM)
    write_series(folder / "a", voxels, SPACING_MM, description="LUNG")
    write_series(folder / "b", voxels, SPACING_MM, description="CHEST JANE DOE 31.01.1970")
    write_series(folder / "c", voxels, SPACING_MM, description="MR of Doe", modality="MR")
    broken = write_series(folder / "d", voxels, SPACING_MM, description="BROKEN")
    for number, path in enumerate(broken):
        path.write_bytes(path.read_bytes()[:-40])
        path.rename(path.with_name(f"DOE_JANE_{number}.dcm"))
    return folder


def test_dicom_gives_the_probabilities_of_the_same_nifti_to_the_bit(data_root, scans):
    printed = json.loads(
        run_ctclip("predict", scans / "same.nii.gz", scans / "a", "--json", "--data-root", data_root).stdout
    )
    nifti, dicom = printed["volumes"]
    assert dicom["file"] == str(scans / "a" / "LUNG")
    assert (dicom["probabilities"], dicom["orientation"]) == (nifti["probabilities"], "as stored")
    model = open_model(data_root / "models" / "tiny-own")
    first, second = model.predict([scans / "same.nii.gz", scans / "a"])
    assert np.array_equal(first.probabilities, second.probabilities)
    assert second.by_abnormality == nifti["probabilities"]
    assert second.ids == {}


@pytest.mark.parametrize(
    "arguments", [["predict"], ["predict", "--json"], ["--debug", "predict"], ["embed-volume", "--json"]]
)
def test_a_patient_appears_nowhere(data_root, scans, tmp_path, arguments):
    output = ["--output", tmp_path / "latents.parquet"] if "embed-volume" in arguments else []
    result = run_ctclip(*arguments, scans, *output, "--data-root", data_root, CTCLIP_LOG="json")
    assert "series 4" in result.stdout  # in place of the description that names her
    assert re.search(r"BROKEN: file \d+ cannot be decoded", result.stderr)
    assert "series 4: is of modality MR, not CT" in result.stderr
    shown = (result.stdout + result.stderr).lower()
    if output:
        shown += str(pq.read_table(output[1]).to_pydict()).lower()
    assert [private for private in PRIVATE if private in shown.replace(str(scans).lower(), "")] == []


def test_a_patient_appears_in_no_file_of_evidence(data_root, scans, tmp_path):
    result = run_ctclip("predict", scans, "--evidence", tmp_path / "maps", "--data-root", data_root)
    assert result.stdout.count("evidence ") == 3
    files = [path for path in (tmp_path / "maps").rglob("*") if path.is_file()]
    assert {path.parent.name for path in files} == {"same", "LUNG", "series_4"}
    for path in files:
        if path.suffix == ".gz":
            text = repr(gzip.decompress(path.read_bytes())[:352])
        else:
            with Image.open(path) as picture:
                text = repr(picture.info)
        shown = f"{path.relative_to(tmp_path)} {text}".lower()
        assert [private for private in PRIVATE if private in shown] == []


@pytest.mark.parametrize("command", ["predict", "embed-volume"])
def test_a_patient_is_shown_to_who_asks(data_root, scans, command):
    options = ["--show-ids", "--data-root", data_root]
    lines = run_ctclip(command, scans / "a", *options).stdout.splitlines()
    assert {f"{keyword}  {value}" for keyword, value in PATIENT.items()} <= set(lines)
    (volume,) = json.loads(run_ctclip(command, scans / "a", *options, "--json").stdout)["volumes"]
    assert {keyword: volume["ids"][keyword] for keyword in PATIENT} == PATIENT
