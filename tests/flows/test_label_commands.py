"""Commands for label sets."""

import json

from support.command_line import run_ctclip

SET = """
name = "screening"
[[findings]]
name = "Nodule"
present = "A nodule is present."
absent = "There is no nodule."
"""


def test_findings_lists_the_built_in_set():
    (listed,) = json.loads(run_ctclip("findings", "--json").stdout)
    assert (listed["name"], len(listed["findings"])) == ("ct-rate-18", 18)
    assert listed["findings"][0]["absent"] == "Medical material is not present."


def test_findings_checks_a_file(tmp_path):
    path = tmp_path / "set.toml"
    path.write_text(SET)
    result = run_ctclip("findings", path)
    assert result.returncode == 0
    assert "screening: 1 findings" in result.stdout
    assert "There is no nodule." in result.stdout
    path.write_text(SET.replace("There is no nodule.", ""))
    result = run_ctclip("findings", path)
    assert result.returncode == 1
    assert "'Nodule': its prompt of absence is empty" in result.stderr
    assert str(path) in result.stderr
