import pytest
from support.reports import HAND_LABEL_COLUMNS, write_csv, write_hand_labels

from ctclip_model.errors import ConfigurationError, MetadataError
from tasks.labels.hand_labels import read_hand_labels


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252"])
def test_reports_are_read_in_any_usual_encoding_with_breaks_inside(tmp_path, encoding):
    text = 'Nodule of 5 mm².\r\nSe\rcond\n\x0bline, "quoted"'
    path = write_hand_labels(tmp_path / "a.csv", [["x", text, *[1] * 18], ["y", " ", *[0] * 18]], encoding=encoding)
    reports = read_hand_labels(path)
    assert reports.scans == ["hand:x"]
    assert reports.texts == [text.replace('"', "")]
    assert reports.labels.tolist() == [[1] * 18]


def test_so_many_reports_are_drawn_with_their_labels(tmp_path):
    rows = [[f"{n}", f"Report {n}.", *[n % 2] * 18] for n in range(20)]
    reports = read_hand_labels(write_hand_labels(tmp_path / "a.csv", rows))
    drawn = reports.draw(5, seed=0)
    assert len(set(drawn.scans)) == 5
    assert drawn.texts == [f"Report {n.removeprefix('hand:')}." for n in drawn.scans]
    assert drawn.labels[:, 0].tolist() == [int(n.removeprefix("hand:")) % 2 for n in drawn.scans]
    assert drawn.scans != reports.draw(5, seed=1).scans
    assert reports.draw(99, seed=0).texts == reports.texts


@pytest.mark.parametrize("column", ["report_text", "Emphysema"])
def test_a_missing_column_is_named(tmp_path, column):
    columns = ["other" if name == column else name for name in HAND_LABEL_COLUMNS]
    with pytest.raises(MetadataError, match=f"has no column {column}"):
        read_hand_labels(write_csv(tmp_path / "a.csv", columns, [["x", "Text.", *[0] * 18]]))


def test_a_label_that_is_neither_0_nor_1_is_named(tmp_path):
    with pytest.raises(MetadataError, match=r"a\.csv:2: Medical material is '2'"):
        read_hand_labels(write_hand_labels(tmp_path / "a.csv", [["x", "Text.", "2", *[0] * 17]]))


def test_a_short_row_is_refused(tmp_path):
    with pytest.raises(MetadataError, match=r"a\.csv:2: .*number of cells"):
        read_hand_labels(write_hand_labels(tmp_path / "a.csv", [["x", "Text."]]))


def test_a_file_without_reports_or_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="holds no report"):
        read_hand_labels(write_hand_labels(tmp_path / "a.csv", []))
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_hand_labels(tmp_path / "b.csv")


def test_byte_that_is_in_no_encoding_is_replaced(tmp_path):
    path = write_hand_labels(tmp_path / "a.csv", [["x", "Nodule of 5 mm.", *[0] * 18]])
    path.write_bytes(path.read_bytes().replace(b"5", b"\x81"))
    assert read_hand_labels(path).texts == ["Nodule of \ufffd mm."]
