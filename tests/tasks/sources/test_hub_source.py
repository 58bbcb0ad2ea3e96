"""CT-RATE from a hub on loopback, by the Hub's own client: one commit, few requests, clear refusals."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
from prefect.artifacts import Artifact
from prefect.blocks.system import Secret
from support.hub import HubRepository, LoopbackHub
from support.hub.repositories import Blob
from support.hub.server import ACCEPTED, EXPIRED, NOT_ACCEPTED

from ctclip_model.data.names import VolumeName
from ctclip_model.data.phantom import PhantomConfig, make_phantoms
from ctclip_model.errors import ConfigurationError, HubAccessError, HubError, HubNotFoundError, HubUnavailableError
from tasks.settings import HUB_TOKEN_BLOCK, LIMITS, STAGES
from tasks.sources.address import parse_address
from tasks.sources.hub_source import HubSource
from tasks.sources.local_source import LocalSource
from tasks.sources.tables import METADATA
from warehouse import store

ADDRESS = "hf://datasets/owner/CT-RATE"
QUICK = dataclasses.replace(LIMITS, hub_attempts=3, hub_wait_s=0.01)


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms")
    make_phantoms(folder, PhantomConfig(seed=1, train_patients=8, valid_patients=4), processes=1)
    return folder


@pytest.fixture
def repository(hub: LoopbackHub, phantoms: Path) -> HubRepository:
    made = hub.repository("owner/CT-RATE", is_gated=True)
    made.commit(phantoms)
    return made


def open_hub(data_root: Path, address: str = ADDRESS) -> HubSource:
    return HubSource(parse_address(address), data_root, limits=QUICK)


def test_catalogue_of_the_hub_is_that_of_the_folder(repository, phantoms, tmp_path):
    source = open_hub(tmp_path)
    revision, catalogue = source.read()
    _, expected = LocalSource(phantoms, tmp_path / "local").read()
    assert revision == repository.branches["main"]
    assert catalogue == expected
    assert (source.name, source.kind) == (ADDRESS, "phantom")


def test_revision_that_moves_during_the_run_does_no_harm(repository, phantoms, tmp_path):
    source = open_hub(tmp_path / "data")
    first, catalogue = source.read()
    moved = Path(shutil.copytree(phantoms, tmp_path / "moved"))
    (moved / METADATA["train"]).write_text("VolumeName,XYSpacing,ZSpacing\n")
    assert repository.commit(moved) != first
    assert source._facts([VolumeName("train", 1, "a", 1)])  # asked for at the first commit still
    assert len(open_hub(tmp_path / "data").read()[1].volumes) < len(catalogue.volumes)
    assert open_hub(tmp_path / "data", f"{ADDRESS}@{first}").read() == (first, catalogue)


def test_all_of_ct_rate_takes_few_requests(hub, tmp_path):
    names = [VolumeName("train", number, "a", 1) for number in range(1, 47_150)]
    names += [VolumeName("valid", number, "a", 1) for number in range(1, 3_040)]
    folder = tmp_path / "tables"
    for split, path in METADATA.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        rows = "".join(f'{name}.nii.gz,"[0.7, 0.7]",1.5\n' for name in names if name.split == split)
        (folder / path).write_text("VolumeName,XYSpacing,ZSpacing\n" + rows)
    repository = hub.repository("owner/CT-RATE")
    tables = repository.commits[repository.commit(folder)]
    repository.commit_files(dict(tables) | {str(name.path()): Blob(1, f"{name}", "", is_lfs=True) for name in names})
    _, catalogue = open_hub(tmp_path / "data").read()
    assert [row["sha256"] for row in catalogue.volumes] == [str(name) for name in names]
    assert len(names) == 50_188
    assert len(hub.requests) <= 120


def test_table_is_fetched_again_only_when_it_changed(hub, repository, tmp_path):
    open_hub(tmp_path).read()
    sent = hub.sent_bytes
    open_hub(tmp_path).read()
    assert hub.sent_bytes == sent > 0


@pytest.mark.parametrize(
    ("token", "error", "advice"),
    [
        ("", HubAccessError, r"accept its terms on http.*/datasets/owner/CT-RATE, make a token on .*hf auth login"),
        (
            NOT_ACCEPTED,
            HubAccessError,
            r"has not accepted the terms of dataset owner/CT-RATE: log in .* on http",
        ),
        (EXPIRED, HubAccessError, r"expired or revoked: make another one on http.*/settings/tokens"),
    ],
)
def test_missing_access_is_one_line_that_says_what_to_do_and_where(
    repository, tmp_path, monkeypatch, token, error, advice
):
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(error, match=advice) as caught:
        open_hub(tmp_path).read()
    assert "\n" not in str(caught.value)
    assert not token or token not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "error", "line"),
    [
        ("hf://datasets/owner/other", HubNotFoundError, "there is no dataset owner/other"),
        (f"{ADDRESS}@v9", HubNotFoundError, "no revision v9: choose another"),
        ("hf://owner/CT-RATE", ConfigurationError, "give hf://datasets/OWNER/NAME"),
        ("hf://datasets/../CT-RATE", ConfigurationError, "no address on the Hub"),
    ],
)
def test_what_is_not_there_is_named(repository, tmp_path, address, error, line):
    with pytest.raises(error, match=line):
        open_hub(tmp_path, address).read()


def test_listing_that_leads_out_of_the_repository_is_refused(hub, repository, tmp_path):
    hub.faults.play("traversal", "paths-info")
    with pytest.raises(HubError, match=r"'\.\./dataset.*not asked for"):
        open_hub(tmp_path / "data").read()
    assert not (tmp_path / "dataset").exists()


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_passing_fault_is_waited_out(hub, repository, tmp_path, status):
    for address in ("/revision/", "/paths-info/"):
        hub.faults.play(status, address, times=2, Retry_After="0")
    assert open_hub(tmp_path).read()[1].volumes
    assert len(hub.faults.played) == 4


def test_lasting_fault_ends_with_its_status(hub, repository, tmp_path):
    hub.faults.play(503, "/paths-info/", times=1000)
    with pytest.raises(HubUnavailableError, match="answers 503"):
        open_hub(tmp_path).read()


def test_hub_that_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubUnavailableError, match=r"http://127.0.0.1:9 cannot be reached \(ConnectError\)"):
        open_hub(tmp_path).read()


@pytest.mark.usefixtures("prefect_server")
def test_ingest_records_the_commit_and_asks_for_the_same_revision_again(repository, phantoms, tmp_path):
    from flows.ingest import ingest

    repository.branches["v2"] = repository.branches["main"]
    data_root = tmp_path / "data"
    ingest(ADDRESS, data_root, revision="v2")
    shutil.copytree(phantoms, tmp_path / "changed")
    path = next((tmp_path / "changed").glob("dataset/*/*/*/*.nii.gz"))
    path.write_bytes(b"other")
    repository.commit(tmp_path / "changed")
    assert ingest(None, data_root)["done"] == 0
    with store.read(data_root) as connection:
        rows = connection.execute("select source, requested_revision, revision, kind from current_sources").fetchall()
    assert rows == [(ADDRESS, "v2", repository.branches["v2"], "phantom")]
    moved = ingest(None, data_root, revision="main")
    assert moved["detail"] == "volumes: 0 new, 1 changed, 0 withdrawn; 21 of 21 volumes are there"
    artifact = Artifact.get("ingest")
    assert artifact is not None
    assert f"**volumes, 1 changed**: {path.name.removesuffix('.nii.gz')}" in str(artifact.data)


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Prefect's, to its server
def test_token_of_a_prefect_secret_opens_the_hub_and_is_recorded_nowhere(repository, tmp_path, monkeypatch):
    from flows.ingest import ingest

    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubAccessError, match="asks for a token and there is none"):
        ingest(ADDRESS, tmp_path / "data")
    Secret(value=ACCEPTED).save(HUB_TOKEN_BLOCK)
    assert ingest(ADDRESS, tmp_path / "data")["done"] > 0
    assert not [path for path in (tmp_path / "data").rglob("*.parquet") if ACCEPTED.encode() in path.read_bytes()]


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.slow
def test_rebuild_from_the_hub_runs_end_to_end(repository, tmp_path):
    from flows.rebuild import rebuild

    summaries = rebuild(ADDRESS, tmp_path / "data", "smoke", labeller="tfidf", finetune_kinds=("lipro",))
    stages = [summary["stage"] for summary in summaries if summary["done"]]
    assert list(dict.fromkeys(stages)) == list(STAGES)
    assert not list((tmp_path / "data/raw/dataset").rglob("*.nii.gz"))  # each dropped once it was converted
    again = rebuild(None, tmp_path / "data", "smoke", labeller="tfidf", finetune_kinds=("lipro",))
    assert [summary["stage"] for summary in again if summary["done"]] == []
