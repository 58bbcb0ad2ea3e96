import pytest

from ctclip_model.data.names import VolumeName, parse_listed_name, parse_volume_name
from ctclip_model.errors import BadNameError


@pytest.mark.parametrize("text", ["valid_53_a_1", "train_1_q_11", "train_20000_aa_10"])
def test_a_name_survives_a_round_trip_with_and_without_its_suffix(text):
    assert str(parse_volume_name(text)) == text
    assert parse_volume_name(f"{text}.nii.gz") == parse_volume_name(text)


def test_a_name_has_a_patient_a_scan_and_paths():
    name = parse_volume_name("valid_53_a_1")
    assert name == VolumeName("valid", 53, "a", 1)
    assert (name.patient_id, name.scan_id) == ("valid_53", "valid_53_a")
    assert str(name.path()) == "dataset/valid_fixed/valid_53/valid_53_a/valid_53_a_1.nii.gz"
    assert str(name.path("v1")) == "dataset/valid/valid_53/valid_53_a/valid_53_a_1.nii.gz"


@pytest.mark.parametrize(
    "text",
    [
        "", "valid", "valid_53_a", "valid_53_a_1_2", "test_53_a_1", "Valid_53_a_1", "valid_53_A_1", "valid_53_1_a",
        "valid_053_a_1", "valid_0_a_1", "valid_53_a_0", "valid_53_a_01", "valid_-3_a_1", "valid_5.3_a_1",
        "valid_53_a_1.nii", "valid_53_a_1.nii.gz.nii.gz", "valid_53_a_1.NII.GZ", ".nii.gz",
        "valid_53_a_1\n", "\nvalid_53_a_1", " valid_53_a_1", "valid_53_a_1\x00", "valid_53_a_1\n.nii.gz",
        "../valid_53_a_1", "valid_53_a_1/..", "/etc/passwd", "valid_53_../../x_1", "valid_53_a_1/valid_53_a_1",
        "valid_٣_a_1", "valid_5³_a_1", "valid_53_\u0430_1", "valid_53_\uff41_1", "valid_\uff15\uff13_a_1",
        "valid\uff3f53_a_1",
        "valid_53_abcd_1", "valid_12345678_a_1", "valid_53_a_1000", "valid_" + "9" * 5000 + "_a_1",
    ],
)  # fmt: skip
def test_any_other_name_is_refused(text):
    with pytest.raises(BadNameError) as caught:
        parse_volume_name(text)
    assert caught.value.reason == "bad_name"
    assert len(str(caught.value)) < 400


def test_a_line_of_the_no_chest_list_may_be_a_whole_path():
    expected = parse_volume_name("train_5_b_2")
    assert parse_listed_name("dataset/train/train_5/train_5_b/train_5_b_2.nii.gz\r\n") == expected
    assert parse_listed_name("train_5_b_2\n") == expected
    with pytest.raises(BadNameError):
        parse_listed_name("dataset/train/train_5/")
