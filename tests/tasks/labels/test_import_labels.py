"""Import of labels: layouts, values, rejects, replacement and a kill."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.records import label_rows, report_row, volume_row, write_run

from ctclip_model.data.abnormalities import ABNORMALITIES
from ctclip_model.data.label_sets import CT_RATE_18, Finding, LabelSet
from ctclip_model.errors import ConfigurationError, MissingInputError, StageFailedError
from tasks.labels.import_labels import import_labels
from tasks.labels.label_sources import find_label_source, list_label_sources
from tasks.run.stage_run import StageRun
from warehouse import store
from warehouse.store import query

SCANS = ["train_1_a", "train_2_a", "valid_1_a"]
PAIR = LabelSet("pair", (Finding("Stent", "A stent.", "No stent."), Finding("Gas, free", "Free gas.", "No free gas.")))
NOW = "select scan_id, abnormality, value, probability from current_labels where labeller_id = 'own' order by all"
REJECTS = "select item, reason from open_rejects where stage = 'import-labels' order by all"


@pytest.fixture
def data_root(tmp_path):
    """Three scans with reports and published labels, all 0. The first has two volumes."""
    names = ["train_1_a_1", "train_1_a_2", "train_2_a_1", "valid_1_a_1"]
    write_run(
        tmp_path, 0, "ingest", volumes=[volume_row(name) for name in names],
        reports=[report_row(scan) for scan in SCANS], published_labels=label_rows(SCANS, np.zeros((3, 18), int)),
    )  # fmt: skip
    store.publish(tmp_path)
    return tmp_path


@pytest.fixture
def take(data_root, tmp_path):
    def take_text(text, label_set=PAIR, name="own", suffix=".csv"):
        path = tmp_path / f"labels{suffix}"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return import_labels(data_root, path, name, label_set)

    return take_text


WIDE = 'scan_id,Stent,"Gas, free"\ntrain_1_a,1,0\ntrain_2_a,-1,\nvalid_1_a,0,1\n'
WANTED = [
    ("train_1_a", "Gas, free", 0, None), ("train_1_a", "Stent", 1, None),
    ("valid_1_a", "Gas, free", 1, None), ("valid_1_a", "Stent", 0, None),
]  # fmt: skip
LONG = "VolumeName;finding;value\n" + "".join(
    f"{scan}_1.nii.gz;{finding};{value}\n" for scan, finding, value, _ in reversed(WANTED)
)
SAME = {
    "wide": WIDE,
    "byte order mark and windows lines": b"\xef\xbb\xbf" + WIDE.replace("\n", "\r\n").encode(),
    "tabs": "scan\tgas, FREE\tstent\nvalid_1_a\t1\t0\ntrain_1_a\t0.0\t1.0\n",
    "long with semicolons, by volume": LONG,
    "rows that agree": WIDE + "train_1_a_1,1,0\ntrain_1_a_2,,0\ntrain_1_a,-1,nan\n",
    "true and false": WIDE.replace("a,1,0", "a,True,False"),
}


@pytest.mark.parametrize("text", SAME.values(), ids=SAME)
def test_layouts_and_spellings_give_the_same_labels(data_root, take, text):
    done = take(text)
    assert query(data_root, NOW) == WANTED
    assert query(data_root, REJECTS) == []
    assert (done.count_scans, done.count_labels, done.count_positive, done.label_set) == (2, 4, 2, "pair")


@pytest.mark.parametrize("layout", ["wide", "long"])
def test_parquet_is_read_in_both_layouts(data_root, tmp_path, layout):
    table = pa.table({"scan_id": SCANS[::2], "Stent": [1, 0], "Gas, free": pa.array([0.0, 1.0])})
    if layout == "long":
        scans, findings, values, _ = zip(*WANTED, strict=True)
        table = pa.table({"scan": scans, "abnormality": findings, "label": pa.array(values, pa.int8())})
    pq.write_table(table, tmp_path / "own.parquet")
    import_labels(data_root, tmp_path / "own.parquet", "own", PAIR)
    assert query(data_root, NOW) == WANTED


def test_probabilities_are_kept_and_reach_a_label_at_a_half(data_root, take):
    take('scan_id,Stent,"Gas, free"\ntrain_1_a,0.5,1\ntrain_2_a,"0,49",0\nvalid_1_a,1,0\n')
    assert query(data_root, NOW) == [
        ("train_1_a", "Gas, free", 1, None), ("train_1_a", "Stent", 1, 0.5), ("train_2_a", "Gas, free", 0, None),
        ("train_2_a", "Stent", 0, 0.49), ("valid_1_a", "Gas, free", 0, None), ("valid_1_a", "Stent", 1, 1.0),
    ]  # fmt: skip


def test_bad_names_findings_and_values_are_rejects_and_the_rest_is_taken(data_root, take):
    text = (
        'scan_id,Stent,"Gas, free",Age\ntrain_1_a,1,2,50\ntrain_2_a,yes,inf,40\ntrain_9_a,1,1,3\nvalid_1_a,1\n'
        "valid_1_a,0,1,\nvalid_1_a_1,1,1,\n,1,1,\n"
    )
    done = take(text)
    assert query(data_root, NOW) == [("train_1_a", "Stent", 1, None), ("valid_1_a", "Gas, free", 1, None)]
    assert query(data_root, REJECTS) == [
        ("Age", "unknown_finding"), ("line 5", "malformed_row"), ("line 8", "unknown_name"),
        ("train_1_a", "bad_value"), ("train_2_a", "bad_value"), ("train_9_a", "unknown_name"),
        ("valid_1_a", "contradiction"),
    ]  # fmt: skip
    assert done.count_rejected == 7
    assert done.rejected == "2 bad_value, 1 contradiction, 1 malformed_row, 1 unknown_finding, 2 unknown_name"


def test_an_unknown_finding_of_a_long_file_is_one_reject(data_root, take):
    take("scan,finding,value\ntrain_1_a,Stent,1\ntrain_1_a,Other,1\ntrain_2_a,Other,0\n")
    assert query(data_root, REJECTS) == [("Other", "unknown_finding")]


@pytest.mark.parametrize("minimum", [-2, -1.5, 1.0001, 2, "1_0", "yes", "0x1", "1 0", "∞"])
def test_a_value_outside_is_no_label(data_root, take, minimum):
    take(f"scan,Stent\ntrain_1_a,{minimum}\nvalid_1_a,1\n")
    assert query(data_root, NOW) == [("valid_1_a", "Stent", 1, None)]
    assert query(data_root, REJECTS) == [("train_1_a", "bad_value")]


REFUSED = {
    "empty": ("", "is empty"),
    "no names": ("a,Stent\n1,1\n", "no column names scans"),
    "no finding": ("scan,Nodule\ntrain_1_a,1\n", "no column is a finding of pair"),
    "quotes": ('scan,Stent\n"train_1_a,1\n', "is no CSV"),
}


@pytest.mark.parametrize(("text", "message"), REFUSED.values(), ids=REFUSED)
def test_a_file_of_another_kind_is_refused_and_nothing_changes(data_root, take, text, message):
    take(WIDE)
    with pytest.raises(ConfigurationError, match=message):
        take(text)
    assert query(data_root, NOW) == WANTED
    with pytest.raises(ConfigurationError, match="no Parquet file"):
        take("PAR1", suffix=".parquet")


def test_a_file_without_a_label_fails_with_its_reasons(data_root, take):
    with pytest.raises(StageFailedError, match="2 unknown_name"):
        take("scan,Stent\nx,1\ny,1\n")
    with pytest.raises(StageFailedError, match="all are blank"):
        take("scan,Stent\ntrain_1_a,\n")


@pytest.mark.parametrize("name", ["published", "hand", "radbert", "labeller-x", "No Blanks", "", "model"])
def test_a_taken_or_odd_name_is_refused(data_root, take, name):
    write_run(data_root, 1, "train", models=[{"model_id": "model", "kind": "ct-clip", "fingerprint": "f"}])
    store.publish(data_root)
    with pytest.raises(ConfigurationError, match="--name"):
        take(WIDE, name=name)


def test_a_second_import_records_only_what_changed_and_withdraws_the_rest(data_root, take):
    take(WIDE + "nobody,1,1\n")
    assert not take(WIDE + "nobody,1,1\n").is_new
    done = take(WIDE.replace("valid_1_a,0,1", "train_2_a,1,"))
    assert done.count_changed == 2
    assert query(data_root, NOW) == [WANTED[0], WANTED[1], ("train_2_a", "Stent", 1, None)]
    runs = "select count(distinct run_id) from current_labels where labeller_id = 'own'"
    assert query(data_root, runs) == [(2,)]
    assert query(data_root, REJECTS) == []
    store.publish(data_root, from_scratch=True)
    assert query(data_root, NOW) == [WANTED[0], WANTED[1], ("train_2_a", "Stent", 1, None)]


def test_scans_that_come_later_make_the_same_file_new(data_root, take):
    take(WIDE + "valid_2_a,1,1\n")
    write_run(data_root, 1, "ingest", volumes=[volume_row("valid_2_a_1")])
    store.publish(data_root)
    assert take(WIDE + "valid_2_a,1,1\n").count_changed == 1
    assert query(data_root, REJECTS) == []


def test_a_kill_before_the_last_record_leaves_the_import_to_be_made_again(data_root, take, monkeypatch):
    record = StageRun.record

    def die_at_the_end(run, table, rows):
        if table == "label_sources":
            raise KeyboardInterrupt
        return record(run, table, rows)

    monkeypatch.setattr(StageRun, "record", die_at_the_end)
    with pytest.raises(KeyboardInterrupt):
        take(WIDE)
    assert "own" not in list_label_sources(data_root)
    monkeypatch.undo()
    done = take(WIDE)
    assert (done.is_new, done.count_changed) == (True, 0)
    assert query(data_root, NOW) == WANTED


def test_the_built_in_findings_get_another_source(data_root, take):
    take(f"VolumeName,{','.join(ABNORMALITIES)}\ntrain_1_a_1,{','.join('1' * 18)}\n", CT_RATE_18)
    assert find_label_source(data_root, "own").label_set == CT_RATE_18
    columns = "labeller_id, other_id, label_set, n, agreement, n_only_labeller, n_only_other, n_only_published"
    rows = query(data_root, f"select {columns} from label_agreement where abnormality = 'Emphysema'")
    assert rows == [("own", "published", "ct-rate-18", 1, 0.0, 1, 0, 0)]
    wide = "select emphysema from labels_wide where labeller_id = 'own'"
    assert query(data_root, wide) == [(1,)]


def test_any_two_sources_of_a_set_are_compared_in_both_directions(data_root, take):
    take(WIDE)
    take(WIDE.replace("a,1,0", "a,1,1"), name="other")
    columns = "labeller_id, other_id, n, agreement, n_only_labeller, n_only_other"
    rows = query(data_root, f"select {columns} from label_agreement where abnormality = 'Gas, free' order by all")
    assert rows == [
        ("other", "own", 1, 0.0, 1, 0), ("other", "own", 1, 1.0, 0, 0), ("own", "other", 1, 0.0, 0, 1),
        ("own", "other", 1, 1.0, 0, 0),
    ]  # fmt: skip
    assert query(data_root, "select count(*) from labels_wide where labeller_id <> 'published'") == [(0,)]


def test_a_source_is_found_by_name_with_its_set(data_root, take):
    take(WIDE)
    assert find_label_source(data_root, "own").label_set == PAIR
    assert find_label_source(data_root, "published").label_set == CT_RATE_18
    with pytest.raises(MissingInputError, match="There are: published, own"):
        find_label_source(data_root, "mine")


def test_scores_without_a_label_set_are_of_the_built_in_one(tmp_path):
    scored = {"model_id": "m", "abnormality": "macro", "metric": "auroc", "label_source": "published"}
    write_run(tmp_path, 0, "evaluate", metrics=[scored])
    write_run(tmp_path, 1, "evaluate", metrics=[scored | {"label_source": "own", "label_set": "pair"}])
    store.publish(tmp_path)
    assert query(tmp_path, "select label_set from current_metrics order by 1") == [("ct-rate-18",), ("pair",)]
