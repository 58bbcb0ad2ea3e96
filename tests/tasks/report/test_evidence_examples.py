"""Evidence on the report page: which scans are shown, with which pictures, and what is said where files are missing."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from support.models import save_random_model
from support.records import label_rows, volume_row, wanted_rows, write_run
from support.volumes import make_shard_volume

from ctclip_model.config import tiny
from ctclip_model.data.abnormalities import ABNORMALITIES
from ctclip_model.data.shards import write_shard
from ctclip_model.evaluation.evidence_files import find_inside
from ctclip_model.evaluation.predict import VolumeModel
from ctclip_model.models.kinds import ModelKind
from tasks.models.find import ModelReference
from tasks.report import evidence
from tasks.report.evidence import EvidenceFinding, find_evidence
from tasks.report.render import PageFacts, render_page
from warehouse import store

RECIPE = tiny().recipe
SCANS = [f"valid_{number}_a" for number in range(1, 9)]
VOLUMES = [*(f"{scan}_1" for scan in SCANS), f"{SCANS[0]}_2"]
FEW, *SCORED = ABNORMALITIES[:6]  # few patients have the first
PROBABILITIES = (0.9, 0.2, 0.8, 0.1, 0.7, 0.3, 0.6, 0.95)  # a value per scan, the same for each abnormality
IS_POSITIVE = (1, 1, 1, 1, 1, 1, 1, 0)
SCORE = {
    "model_id": "m", "dataset": "phantom", "split": "valid", "label_source": "published", "protocol": "zero-shot",
    "unit": "scan", "label_set": "ct-rate-18",
}  # fmt: skip
SCORED_SCAN = {name: value for name, value in SCORE.items() if name != "label_source"}


@pytest.fixture
def data_root(tmp_path: Path) -> Path:
    """A model of random weights with eight scored scans, whose volumes lie in one shard."""
    save_random_model(tmp_path / "models" / "m", tiny())
    path = f"shards/{RECIPE.recipe_id}/0.arrow"
    write_shard(tmp_path / path, RECIPE, [make_shard_volume(name, RECIPE, seed=i) for i, name in enumerate(VOLUMES)])
    recipe = {"recipe_id": RECIPE.recipe_id, "fingerprint": "s"}
    write_run(
        tmp_path, 0, "ingest", sources=[{"source": "phantom:/x", "kind": "phantom"}],
        volumes=[volume_row(name, source="phantom:/x") for name in VOLUMES],
        published_labels=label_rows(SCANS, np.repeat(np.array(IS_POSITIVE)[:, None], 18, axis=1)),
        shard_volumes=[
            recipe | {"volume_name": name, "shard_path": path, "row_index": row} for row, name in enumerate(VOLUMES)
        ],
        wanted=wanted_rows("convert", RECIPE.recipe_id, dict.fromkeys(VOLUMES, "s")),
    )  # fmt: skip
    latents = {"model_id": "m", "kind": "volume", "fingerprint": "l", "latent": [1.0]}
    wanted = wanted_rows("embed", "m", {f"volume:{name}": "l" for name in VOLUMES})
    write_run(tmp_path, 1, "embed", latents=[latents | {"item": name} for name in VOLUMES], wanted=wanted)
    write_run(
        tmp_path, 2, "evaluate", models=[{"model_id": "m", "kind": "ct-clip", "preset": "tiny"}],
        metrics=[
            SCORE | {"abnormality": name, "metric": metric, "value": 0.9 - 0.1 * index, "n": 8}
            | {"threshold": 0.5 if metric == "f1" else None, "has_few_patients": name == FEW}
            for index, name in enumerate((FEW, *SCORED)) for metric in ("auroc", "f1")
        ],
        predictions=[
            SCORED_SCAN | {"abnormality": name, "item": scan, "probability": probability}
            for name in (FEW, *SCORED) for scan, probability in zip(SCANS, PROBABILITIES, strict=True)
        ],
    )  # fmt: skip
    store.publish(tmp_path)
    return tmp_path


def find(data_root: Path, kind: ModelKind = ModelKind.ct_clip) -> tuple[list[EvidenceFinding], str]:
    model = ModelReference("m", kind, "tiny", data_root / "models" / "m", RECIPE.recipe_id, 1.0, "f", "w", "m")
    with store.read(data_root) as connection:
        return find_evidence(connection, data_root, model, "phantom", "valid")


def test_best_middle_and_worst_abnormality_show_the_surest_and_the_worst_missed_scans(data_root):
    findings, note = find(data_root)
    assert [finding.abnormality for finding in findings] == [SCORED[0], SCORED[2], SCORED[4]]
    for finding in findings:
        shown = [(one.volume_name, one.probability, one.is_found, one.count_volumes) for one in finding.examples]
        assert shown == [
            ("valid_1_a_1", 0.9, True, 2), ("valid_3_a_1", 0.8, True, 1),
            ("valid_4_a_1", 0.1, False, 1), ("valid_2_a_1", 0.2, False, 1),
        ]  # fmt: skip
    assert note == ""


def test_each_volume_takes_one_pass_and_each_picture_says_what_it_shows(data_root, monkeypatch):
    seen = []
    plain = VolumeModel.explain
    monkeypatch.setattr(VolumeModel, "explain", lambda model, volume: seen.append(volume[0]) or plain(model, volume))
    findings, _ = find(data_root)
    assert len(seen) == 4
    for row, voxels in enumerate(seen):  # the volumes of the first four scans, each once
        assert np.array_equal(voxels, make_shard_volume("", RECIPE, seed=row).converted.voxels)
    html = render_page(PageFacts("t", [], evidence=findings))
    alts = re.findall(r'<img src="data:image/webp;base64,[^"]+" alt="([^"]+)">', html)
    assert len(alts) == 3 * 4 * 3
    assert alts[0] == (
        f"axial slice of valid_1_a_1 through the strongest patch for {SCORED[0].lower()}, probability 0.900, "
        "threshold 0.500, seen from the feet"
    )
    assert html.count("(mean of 2 reconstructions)") == 3
    assert find(data_root)[0] == findings


def test_missing_shards_and_weights_are_one_sentence(data_root):
    (data_root / f"shards/{RECIPE.recipe_id}/0.arrow").unlink()
    findings, note = find(data_root)
    assert findings == []
    assert note.startswith("Shards of 4 of 4 volumes are not on this machine")
    (data_root / "models/m/model.safetensors").unlink()
    assert find(data_root) == ([], evidence.NO_WEIGHTS)
    html = render_page(PageFacts("t", [], evidence_note=evidence.NO_WEIGHTS))
    assert evidence.NO_WEIGHTS.replace("'", "&#39;") in html


def test_a_full_gpu_leaves_the_work_to_the_cpu(data_root, monkeypatch):
    plain, devices = evidence.open_model, []

    def open_model(folder: Path, *, device: str, **options):
        devices.append(device)
        if device == "auto":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(folder, device=device, **options)

    expected = find(data_root)
    monkeypatch.setattr(evidence, "open_model", open_model)
    assert find(data_root) == expected
    assert devices == ["auto", "cpu"]


def test_pictures_end_at_the_bound(data_root, monkeypatch):
    findings, _ = find(data_root)
    sizes = [sum(len(uri) for _, uri, _ in one.panels) for finding in findings for one in finding.examples]
    monkeypatch.setattr(evidence, "PICTURE_BYTES", sum(sizes[:5]))
    (first, second), _ = find(data_root)
    assert (len(first.examples), len(second.examples)) == (4, 1)


def test_large_models_show_half_as_many(data_root, monkeypatch):
    monkeypatch.setattr(evidence, "count_at_once", lambda *_: 1)
    findings, _ = find(data_root)
    assert [one.volume_name for one in findings[0].examples] == ["valid_1_a_1", "valid_4_a_1"]


def test_patches_of_padding_are_not_inside():
    inside = find_inside((2, 0, 5), (8, 10, 10), (10, 10, 10), (5, 2, 3))
    assert inside.shape == (5, 2, 3)
    assert inside[:, 0, 2].tolist() == [False, True, True, True, False]
    assert inside[2, 0].tolist() == [False, True, True]
