"""Fingerprints: the same hashes however they are made, and parts that become text once somebody asks."""

import pickle

import pytest

from ctclip_model.config import Recipe, compute_fingerprint, fingerprint_each
from tasks.run import fingerprints
from tasks.run.fingerprints import Fingerprint, get_parts, has_parts

PARTS = ('a"ü\n', 1, 2.5, None, True, [1, "x", (2,)], {"b": 1, "a": [None]}, Recipe())


def test_a_fingerprint_is_the_same_from_version_to_version():
    assert compute_fingerprint(*PARTS) == "5ee0c3e120704aaaa6073cec77bcb8f7"


@pytest.mark.parametrize("before", [(), ("w", 1), (Recipe(), {"a": [1]})])
@pytest.mark.parametrize("after", [(), ("bfloat16",), ({"b": 1}, 2)])
def test_many_items_have_the_fingerprints_that_each_has_alone(before, after):
    items = [('a"ü\n,', 0.7), ("", None), ("\r\u2028]", float("inf")), ("x", 3), ("[1", True)]
    columns = [list(column) for column in zip(*items, strict=True)]
    alone = [compute_fingerprint(*before, *item, *after) for item in items]
    assert list(fingerprint_each(before, columns, after)) == alone


def test_no_item_has_no_fingerprint():
    assert list(fingerprint_each(("w",), [[]], ())) == list(fingerprint_each((), [], ())) == []


def test_a_part_that_is_no_json_is_refused():
    with pytest.raises(TypeError, match="object"):
        compute_fingerprint(object())


def test_parts_become_text_once_somebody_asks(monkeypatch):
    shortened = []
    monkeypatch.setattr(fingerprints, "_shorten", lambda value: shortened.append(value) or str(value))
    fingerprint = Fingerprint("f", {"file": "a", "spacing": [1.0]})
    assert has_parts(fingerprint)
    assert shortened == []
    assert get_parts(fingerprint) == get_parts(fingerprint) == {"file": "a", "spacing": "[1.0]"}
    assert shortened == ["a", [1.0]]


def test_a_text_and_a_fingerprint_without_parts_have_none():
    assert not has_parts("f")
    assert not has_parts(Fingerprint("f"))
    assert get_parts("f") is get_parts(Fingerprint("f")) is None


def test_parts_travel_to_a_worker():
    assert get_parts(pickle.loads(pickle.dumps(Fingerprint("f", {"file": "a"})))) == {"file": "a"}
