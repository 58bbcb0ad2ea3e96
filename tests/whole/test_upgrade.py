"""An installation of the version before: its Prefect database, deployments and data root go on with this one.

`prefect_3.8.8.db.xz` is the database of Prefect 3.8.8 after `ctclip deploy` at commit d72c9ad. Then the weekly schedule
of `rebuild` was turned on, its preset and labeller were set, and a run of it was queued.
"""

from __future__ import annotations

import lzma
from collections.abc import Iterator

import pytest
from support.installation import Installation
from support.old_data_root import RAISED, extract_old_data_root, make_old_phantoms
from support.paths import GOLDEN

from warehouse.store import query

pytestmark = [pytest.mark.orchestration, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    made = Installation(tmp_path_factory.mktemp("installation"))
    (made.folder / "prefect").mkdir()
    (made.folder / "prefect/prefect.db").write_bytes(lzma.decompress((GOLDEN / "prefect_3.8.8.db.xz").read_bytes()))
    extract_old_data_root(made.data_root)
    try:
        made.start_server()
        yield made
    finally:
        for name in list(made.processes):
            made.kill(name)


@pytest.fixture(scope="module")
def deployed(installation: Installation) -> list[str]:
    """Changes that the deployment of this version made."""
    return installation.ctclip("deploy").splitlines()


def test_a_deploy_keeps_what_people_have_set(installation, deployed):
    (rebuild,) = [line for line in deployed if line.startswith("deployment rebuild:")]
    assert rebuild == "deployment rebuild: updated, schedule on, keeps preset=smoke, labeller=tfidf"
    assert not [line for line in deployed if line.startswith(("pool", "deployment")) and line.endswith(": new")]
    after = installation.ask("GET", "/deployments/name/rebuild/rebuild")
    assert after["parameters"] == {"deployed": True, "preset": "smoke", "labeller": "tfidf"}
    assert [schedule["active"] for schedule in after["schedules"]] == [True]


@pytest.mark.usefixtures("deployed")
def test_a_run_that_was_queued_before_is_carried_out_on_the_old_data_root(installation, tmp_path):
    (queued,) = [run for run in installation.flow_runs("rebuild") if run["name"] == "made before the upgrade"]
    installation.ctclip("ingest", "--source", str(make_old_phantoms(tmp_path)))  # the source has moved, too
    before = query(installation.data_root, "select max(run_id) from runs")[0][0]
    for pool in ("cpu", "rebuild"):
        installation.start_worker(pool)
    installation.wait(queued["id"])
    made = query(
        installation.data_root,
        f"select distinct stage from runs where run_id > '{before}' and status = 'completed' and count_done > 0",
    )
    assert {stage for (stage,) in made} == RAISED
