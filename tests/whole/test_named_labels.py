"""A rebuild on labels of one's own: trained, fine-tuned and scored by them, and stale once they change."""

from __future__ import annotations

import csv
from itertools import product
from pathlib import Path

import pytest
from support.rebuilds import count_done, rebuild_all

from ctclip_model import open_model
from ctclip_model.data.label_sets import Finding, LabelSet
from ctclip_model.errors import ConfigurationError, MissingInputError
from warehouse.store import query

pytestmark = [pytest.mark.usefixtures("prefect_server"), pytest.mark.slow]

PAIR = LabelSet("pair", (Finding("Nodule", "A nodule.", "No nodule."), Finding("Fluid", "Fluid.", "No fluid.")))
MODELS = """
    select kind, config ->> '$.labels_of', config ->> '$.label_set' from current_models
    where kind <> 'labeller' and run_id > ? order by run_id
"""
SCORED = """
    select distinct kind, label_source from current_metrics join current_models as models using (model_id)
    where models.run_id > ?
"""
PAGES = """
    select kind, label_source, pages.path
    from current_pages as pages join current_models as models using (model_id)
    where models.run_id > ? order by kind = 'lipro', kind, label_source
"""
STALE = "select kind, count_changed from stale_models join current_models using (model_id) where is_stale order by all"


def import_pair(data_root: Path, path: Path, *, odd: int) -> None:
    """Labels of every second scan: a nodule in scans whose number leaves the rest `odd`, fluid unknown in some."""
    from tasks.labels.import_labels import import_labels

    scans = [scan for (scan,) in query(data_root, "select distinct scan_id from current_volumes order by all")]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["scan_id", "Nodule", "Fluid"])
        writer.writerows([scan, int(row % 4 // 2 == odd), "" if row % 3 else row % 2] for row, scan in enumerate(scans))
    import_labels(data_root, path, "own", PAIR)


def test_rebuild_trains_and_scores_by_named_labels_and_is_stale_once_they_change(data_root, phantoms, tmp_path):
    from tasks.plan.explain import explain_plan

    ((before,),) = query(data_root, "select max(run_id) from runs")
    import_pair(data_root, tmp_path / "own.csv", odd=0)
    rebuild_all(data_root, phantoms, labels_of="own")
    assert query(data_root, MODELS, [before]) == [(kind, "own", "pair") for kind in ("ct-clip", "lipro", "vocabfine")]
    scored = query(data_root, SCORED, [before])
    assert {*scored} == {*product(("ct-clip", "vocabfine"), ("own", "published")), ("lipro", "own")}
    assert "smoke by own" in dict(query(data_root, "select variant, stage from stage_status where stage = 'train'"))
    for (folder,) in query(
        data_root, "select path from current_models where run_id > ? and kind <> 'labeller'", [before]
    ):
        model = open_model(data_root / folder, label_set=PAIR)
        assert (model.decisions.label_set, model.decisions.cohort.label_source) == ("pair", "own")
    pages = query(data_root, PAGES, [before])
    assert [row[:2] for row in pages] == [*product(("ct-clip", "vocabfine"), ("own", "published")), ("lipro", "own")]
    for _, source, path in pages:
        page = (data_root / path).read_text()
        assert ("by the labels own" in page, "Nodule" in page, "Emphysema" in page) == (
            source == "own", source == "own", source == "published",
        )  # fmt: skip
    assert count_done(rebuild_all(data_root, phantoms, labels_of="own")) == {}
    assert query(data_root, STALE) == []
    import_pair(data_root, tmp_path / "own.csv", odd=1)
    assert [kind for kind, _ in query(data_root, STALE)] == ["ct-clip", "lipro", "vocabfine"]
    plan = explain_plan(data_root, "train", 5)
    assert (plan["pending"], len(plan["notes"])) == (0, 1)
    assert "is stale" in plan["notes"][0]


def test_train_by_labels_that_it_cannot_learn_is_refused(data_root):
    from flows.train import train

    with pytest.raises(MissingInputError, match="there are no labels 'own'"):
        train(data_root, "smoke", labels_of="own")
    with pytest.raises(ConfigurationError, match="preset published learns from reports alone"):
        train(data_root, "published", labels_of="published")
