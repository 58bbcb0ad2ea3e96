"""Log lines say which run and which item they are about, in this process and on Dask workers."""

from __future__ import annotations

import json
import logging
from types import SimpleNamespace

import pytest
from support.command_line import keep_loggers, run_ctclip_process

from ctclip_model.errors import ConfigurationError, VolumeError
from tasks.run.dask_jobs import fan_out
from tasks.run.deadline import run_with_deadline
from tasks.run.logs import configure_logging, log_context
from tasks.run.stage_run import open_run
from tasks.volumes.downloader import Downloader, DownloadOptions

logger = logging.getLogger("tasks.test")


@pytest.fixture(autouse=True)
def _loggers_as_before():
    with keep_loggers():
        yield


def log_job(job: str) -> None:
    with log_context(item=job):
        run_with_deadline(30, lambda: logger.info("read"))


def lines(text: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def test_lines_of_a_run_carry_it_and_their_item(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("CTCLIP_LOG", "json")
    configure_logging()
    with open_run(tmp_path, "convert", "recipe") as run:
        run.reject(VolumeError("valid_1_a_1", "truncated", "ends early"), fingerprint="f")
        assert list(fan_out(log_job, ["valid_2_a_1"])) == [("valid_2_a_1", None)]
    logger.info("after")
    found = lines(capfd.readouterr().err)
    about = [(one.get("stage"), one.get("variant"), one.get("run_id"), one.get("item")) for one in found]
    key = ("convert", "recipe", run.run_id)
    assert (*key, "valid_1_a_1") in about
    assert (*key, "valid_2_a_1") in about  # logged by another process
    assert (found[-1]["message"], about[-1]) == ("after", (None,) * 4)


def test_lines_of_a_download_carry_its_run_and_its_volume(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("CTCLIP_LOG", "json")
    configure_logging()
    monkeypatch.setattr(Downloader, "fetch", lambda self, volume: logger.info("fetched"))
    with Downloader(tmp_path, DownloadOptions()) as downloader, log_context(stage="download", run_id="1"):
        downloader.submit(SimpleNamespace(volume_name="valid_1_a_1")).result()
    (line,) = lines(capfd.readouterr().err)
    assert (line["stage"], line["run_id"], line["item"]) == ("download", "1", "valid_1_a_1")


def test_person_sees_the_words_of_warnings_alone(tmp_path, monkeypatch, capfd):
    monkeypatch.delenv("CTCLIP_LOG", raising=False)
    configure_logging()
    configure_logging()
    with log_context(stage="convert"):
        logger.info("of no interest")
        logger.warning("watch out")
    assert capfd.readouterr().err == "ctclip: watch out\n"


def test_format_that_there_is_not_is_refused(monkeypatch):
    monkeypatch.setenv("CTCLIP_LOG", "xml")
    with pytest.raises(ConfigurationError, match="'xml': choose text or json"):
        configure_logging()


def test_command_that_fails_says_so_as_json_too(tmp_path):
    done = run_ctclip_process("status", "--data-root", tmp_path, CTCLIP_LOG="json")
    assert done.returncode == 1
    (line,) = lines(done.stderr)
    assert (line["level"], line["logger"]) == ("error", "flows.cli")
    assert "ctclip ingest" in line["message"]
