"""The examples do what their first line says, on phantoms and small models."""

from __future__ import annotations

import csv
import runpy
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from support.models import SLIM, make_model, make_tokenizer
from support.paths import ROOT
from support.records import label_rows, write_run
from support.reports import write_csv, write_hand_labels, write_reports

from ctclip_model.data.abnormalities import ABNORMALITIES
from warehouse import store

EXAMPLES = ROOT / "examples"
SVG = "{http://www.w3.org/2000/svg}"


def run(name: str, *arguments: str | Path) -> None:
    runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"](*map(str, arguments))


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_own_ct_gives_a_row_of_probabilities_and_a_damaged_file_is_named(few_phantoms, tmp_path, capsys):
    (tmp_path / "scans").mkdir()
    shutil.copy(next(few_phantoms.rglob("valid_*.nii.gz")), tmp_path / "scans" / "own.nii.gz")
    (tmp_path / "scans" / "damaged.nii.gz").write_bytes(b"no volume")
    torch.save(make_model(SLIM).state_dict(), tmp_path / "weights.pt")
    make_tokenizer().backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    run("own_ct_to_abnormalities", tmp_path / "weights.pt", tmp_path / "scans", tmp_path / "table.csv")
    (row,) = read_rows(tmp_path / "table.csv")
    assert row["volume"] == "own.nii.gz"
    assert all(0 < float(row[name]) < 1 for name in ABNORMALITIES)
    assert row["picture"] == str(tmp_path / "evidence" / "own" / "evidence.png")
    assert len(list((tmp_path / "evidence" / "own").iterdir())) == 19
    assert "damaged.nii.gz" in capsys.readouterr().err


def test_latents_of_one_kind_are_near_each_other_on_the_map(tmp_path):
    names = [f"{split}_{number}_a_1" for number in range(4) for split in ("train", "valid")]
    rng = np.random.default_rng(0)
    vectors = [(np.eye(8)[int(name.startswith("valid"))] + rng.normal(0, 0.01, 8)).astype(np.float32) for name in names]
    pq.write_table(pa.table({"name": names, "model": ["m"] * 8, "vector": vectors}), tmp_path / "latents.parquet")
    run("embeddings_to_plot", tmp_path / "latents.parquet", tmp_path / "map.svg")
    dots = ElementTree.parse(tmp_path / "map.svg").findall(f"{SVG}circle")
    assert [dot.findtext(f"{SVG}title") for dot in dots] == names
    train, valid = (sorted(float(dot.attrib["cx"]) for dot in dots[start::2]) for start in (0, 1))
    assert min(abs(one - other) for one in train for other in valid) > 10 * max(np.ptp(train), np.ptp(valid)) > 0


def test_figure_has_a_bar_for_each_abnormality_as_long_as_its_prevalence(tmp_path):
    labels = np.zeros((4, len(ABNORMALITIES)))
    labels[:2, ABNORMALITIES.index("Lung nodule")] = 1
    write_run(tmp_path, 0, "ingest", published_labels=label_rows([f"valid_{number}_a" for number in range(4)], labels))
    store.publish(tmp_path)
    run("sql_to_figure", tmp_path / store.WAREHOUSE_FILE, "valid", tmp_path / "figure.svg")
    root = ElementTree.parse(tmp_path / "figure.svg").getroot()
    assert [float(bar.attrib["width"]) for bar in root.findall(f"{SVG}rect")] == [200.0] + [0.0] * 17
    assert [text.text for text in root.findall(f"{SVG}text")][:2] == ["Lung nodule", "50% (2 of 4)"]


def test_a_labeller_of_own_hand_labels_reads_own_reports(tmp_path):
    reports, labels = write_reports(200, seed=0)
    write_hand_labels(tmp_path / "hand.csv", [[f"r{n}", reports[n], *labels[n]] for n in range(200)])
    asked, expected = write_reports(20, seed=1)
    write_csv(tmp_path / "reports.csv", ["report_text"], [[text] for text in asked])
    run("label_own_reports", tmp_path / "hand.csv", tmp_path / "reports.csv", tmp_path / "labels.csv")
    present = [
        {part.rsplit(" ", 1)[0] for part in row["present"].split("; ") if part}
        for row in read_rows(tmp_path / "labels.csv")
    ]
    assert present == [{ABNORMALITIES[index] for index in np.flatnonzero(row)} for row in expected]


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_is_short_and_tested_here(path):
    assert len(path.read_text().splitlines()) <= 50
    assert f'"{path.stem}"' in Path(__file__).read_text()
