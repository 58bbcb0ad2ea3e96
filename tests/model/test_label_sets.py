"""Label sets: the built-in one, and those read from a TOML file."""

import pytest

from ctclip_model.data.abnormalities import ABNORMALITIES, prompt_pair
from ctclip_model.data.label_sets import CT_RATE_18, LARGEST_FILE_BYTES, Finding, LabelSet, read_label_set
from ctclip_model.errors import ConfigurationError

GOOD = """
name = "screening"
[[findings]]
name = "Ground-glass nodule"
present = "A ground-glass nodule is present."
absent = "There is no ground-glass nodule."
[[findings]]
name = "Öedema (µ-pattern)"
present = "Oedema is present."
absent = "Oedema is not present."
"""


@pytest.fixture
def write(tmp_path):
    def write_file(content):
        path = tmp_path / "findings.toml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write_file


def test_the_built_in_set_has_the_18_and_the_published_prompts():
    assert CT_RATE_18.names == ABNORMALITIES
    assert CT_RATE_18.prompts == [prompt for name in ABNORMALITIES for prompt in prompt_pair(name)]
    assert CT_RATE_18.is_built_in


def test_a_file_is_read_in_its_order(write):
    read = read_label_set(write(GOOD))
    assert (read.name, read.names) == ("screening", ("Ground-glass nodule", "Öedema (µ-pattern)"))
    assert read.prompts[:2] == ["A ground-glass nodule is present.", "There is no ground-glass nodule."]
    assert not read.is_built_in


@pytest.mark.parametrize("mark", [b"\xef\xbb\xbf", b""])
def test_byte_order_mark_and_windows_line_ends_change_nothing(write, mark):
    content = mark + GOOD.replace("\n", "\r\n").encode()
    assert read_label_set(write(content)) == read_label_set(write(GOOD))


@pytest.mark.parametrize("name", ["Ground-glass nodule", " ground_glass  NODULE ", "ground glass nodule"])
def test_a_finding_is_found_by_any_spelling(write, name):
    assert read_label_set(write(GOOD)).find(name) == 0
    assert read_label_set(write(GOOD)).find("nodule") is None


def test_order_and_prompts_change_the_fingerprint():
    first, second = Finding("a", "a.", "no a."), Finding("b", "b.", "no b.")
    prints = {
        LabelSet("one", findings).fingerprint
        for findings in ((first, second), (second, first), (first,), (first, Finding("b", "b!", "no b.")))
    }
    assert len(prints | {LabelSet("two", (first, second)).fingerprint}) == 5


def change(old, new, content=GOOD):
    assert old in content
    return content.replace(old, new)


BAD = {
    "no absent prompt": (change('absent = "There is no ground-glass nodule."', ""), "no prompt of absence"),
    "no present prompt": (change('present = "Oedema is present."', ""), "no prompt of presence"),
    "empty prompt": (change("Oedema is present.", " "), "prompt of presence is empty"),
    "same prompts": (change("Oedema is not present.", "Oedema is present."), "both prompts are the same"),
    "duplicate": (change("Öedema (µ-pattern)", "ground-glass_Nodule"), "twice"),
    "empty name": (change("Ground-glass nodule", ""), "its name is empty"),
    "taken name": (change('"Ground-glass nodule"', '"Macro"'), "taken"),
    "line break": (change('"Ground-glass nodule"', r'"Ground\nglass"'), "U\\+000A"),
    "right to left": (change('"Ground-glass nodule"', r'"Ground\u202eglass"'), "U\\+202E"),
    "zero": (change('"Oedema is present."', r'"Oedema\u0000"'), "U\\+0000"),
    "long name": (change("Ground-glass nodule", "x" * 101), "101 characters"),
    "not a text": (change('"Oedema is present."', "3"), "present is 3"),
    "unknown key": (change('name = "Ground-glass nodule"', 'name = "G"\nprompt = "x"'), "unknown key 'prompt'"),
    "no name": (change('name = "screening"', ""), "has no name"),
    "set name": (change('"screening"', '"../etc"'), "a name has"),
    "built-in name": (change('"screening"', '"ct-rate-18"'), "built-in"),
    "no findings": ('name = "screening"\nfindings = []', "0 findings"),
    "findings of another form": ('name = "screening"\nfindings = ["a"]', r"\[\[findings\]\]"),
    "no TOML": ("name = ", "is not TOML"),
    "nested": ("a = " + "[" * 100_000, "is not TOML"),
    "no UTF-8": (b"\xff\xfe", "is not UTF-8"),
    "too large": ("#" * (LARGEST_FILE_BYTES + 1), "is larger than"),
    "empty": ("", "has no name"),
}


@pytest.mark.parametrize(("content", "message"), BAD.values(), ids=BAD)
def test_a_bad_file_is_refused_by_name(write, content, message):
    path = write(content)
    with pytest.raises(ConfigurationError, match=message) as caught:
        read_label_set(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path, tmp_path / "none.toml"):
        with pytest.raises(ConfigurationError, match="cannot be read"):
            read_label_set(path)
