"""A language model behind an endpoint labels reports, whatever its server does."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.command_line import run_ctclip
from support.language_model import (
    KEY,
    MODEL,
    LanguageModel,
    close,
    cut,
    error,
    read_truth,
    say,
    say_fenced,
    send_json,
    stall,
    trickle,
)  # fmt: skip
from support.processes import start_python, wait_for
from support.records import label_rows, report_row, write_run
from support.reports import write_hand_labels, write_reports

from ctclip_model.data.abnormalities import ABNORMALITIES
from ctclip_model.data.label_sets import Finding, LabelSet
from ctclip_model.device import Precision
from ctclip_model.errors import ConfigurationError, EndpointError, EndpointUnavailableError, StageFailedError
from ctclip_model.labelling.questions import Questionnaire
from tasks.labels.answers import AnswerJournal, record_answers
from tasks.labels.endpoint_address import Endpoint, find_addresses, is_local, parse_endpoint
from tasks.labels.endpoint_client import EndpointClient
from tasks.labels.label import plan_labels
from tasks.labels.label_sources import find_label_source
from tasks.plan.explain import explain_plan
from tasks.run.publish import publish
from tasks.run.selection import Selection
from tasks.run.stage_run import open_run
from tasks.settings import Limits
from warehouse.store import query

TEXTS, LABELS = write_reports(30, seed=0)
SCANS = [f"train_{number}_a" for number in range(1, 31)]
QUESTIONS = Questionnaire(MODEL)
LIMITS = Limits(endpoint_batch=4, rejects_tolerated=5)
IMPATIENT = dataclasses.replace(LIMITS, endpoint_timeout_s=1.0)  # meets the stalls that the server plays
BODY = QUESTIONS.make_request("No pleural effusion.")


@pytest.fixture
def model() -> Iterator[LanguageModel]:
    with LanguageModel().running() as model:
        yield model


@pytest.fixture
def data_root(tmp_path: Path) -> Path:
    """30 ingested reports."""
    rows = [report_row(scan, text) for scan, text in zip(SCANS, TEXTS, strict=True)]
    write_run(tmp_path / "data", 0, "ingest", reports=rows, published_labels=label_rows(SCANS, LABELS))
    return tmp_path / "data"


def label(
    data_root: Path, model: LanguageModel, *, retry_rejects: bool = False, limits: Limits = LIMITS, **options: Any
) -> dict[str, Any]:
    """Labels what is pending, and returns the run's summary."""
    endpoint = Endpoint(model.url, **options)
    with open_run(data_root, "label", QUESTIONS.labeller_id, limits=limits) as run:
        reports = plan_labels(
            run, QUESTIONS.labeller_id, Precision.float32, Selection(), force=False, retry_rejects=retry_rejects
        )
        if reports:
            record_answers(run, QUESTIONS, reports, endpoint, sleep=lambda _: None)
    return run.summary()


def ask(model: LanguageModel, slept: list[float] | None = None, **options: Any) -> dict[str, Any]:
    sleep = ([] if slept is None else slept).append
    with EndpointClient(Endpoint(model.url, **options), LIMITS, sleep) as client:
        return client.ask(BODY)


def read_labels(data_root: Path) -> dict[tuple[str, str], int]:
    rows = query(data_root, "select scan_id, abnormality, value from current_labels")
    return {(scan, name): value for scan, name, value in rows}


TRUTH = {
    (scan, name): int(value)
    for scan, row in zip(SCANS, LABELS, strict=True)
    for name, value in zip(ABNORMALITIES, row, strict=True)
}


def test_every_report_is_asked_about_once_and_labels_are_the_truth(data_root, model):
    assert label(data_root, model)["done"] == 30
    assert read_labels(data_root) == TRUTH
    assert len(model.requests) == 30
    assert label(data_root, model)["done"] == 0
    assert len(model.requests) == 30
    assert query(data_root, "select distinct probability, threshold from labels order by all") == [(0, 0.5), (1, 0.5)]
    assert not AnswerJournal(data_root, QUESTIONS.labeller_id).path.exists()


def test_request_holds_one_report_a_schema_of_the_findings_and_temperature_zero():
    body = Questionnaire("m", make_set("Cyst", "Clot")).make_request("A report.")
    assert body["temperature"] == 0
    assert body["messages"][-1] == {"role": "user", "content": "A report."}
    assert body["response_format"]["json_schema"]["schema"] == {
        "type": "object", "properties": {"Cyst": {"type": "boolean"}, "Clot": {"type": "boolean"}},
        "required": ["Cyst", "Clot"], "additionalProperties": False,
    }  # fmt: skip


def test_model_findings_and_instructions_are_in_the_name_of_the_labeller(monkeypatch):
    reworded = LabelSet("own", (Finding("Cyst", "A cyst is seen.", "No cyst."),))
    asked = [QUESTIONS, Questionnaire("other"), *(Questionnaire(MODEL, one) for one in (make_set("Cyst"), reworded))]
    names = {one.labeller_id for one in asked}
    monkeypatch.setattr("ctclip_model.labelling.questions.INSTRUCTIONS", "Read this:\n")
    assert len({*names, QUESTIONS.labeller_id}) == 5
    assert Questionnaire("meta/Llama 3:8b").labeller_id.startswith("openai-meta-Llama-3-8b-")


def make_set(*names: str) -> LabelSet:
    return LabelSet("own", tuple(Finding(name, f"{name}.", f"No {name}.") for name in names))


def write_set(path: Path, *names: str) -> Path:
    findings = [f'[[findings]]\nname = "{name}"\npresent = "{name}."\nabsent = "No {name}."' for name in names]
    path.write_text("\n".join(['name = "own"', *findings]))
    return path


@pytest.mark.usefixtures("prefect_server")
def test_other_findings_are_a_label_set_with_a_source_that_every_stage_takes(data_root, model, tmp_path):
    publish(data_root)
    findings = write_set(tmp_path / "own.toml", "Emphysema", "Lung nodule")
    asked = ("label", "--json", "--data-root", data_root, "--labeller", f"openai:{MODEL}", "--findings", findings)
    plan = ("plan", *asked)
    assert json.loads(run_ctclip(*plan).stdout)["pending"] == 30
    done = run_ctclip(*asked, "--endpoint", model.origin)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    source = find_label_source(data_root, summary["variant"])
    assert (summary["done"], source.label_set) == (30, make_set("Emphysema", "Lung nodule"))
    assert read_labels(data_root) == {key: value for key, value in TRUTH.items() if key[1] in source.label_set.names}
    agreement = "select distinct label_set from label_agreement where labeller_id <> 'published'"
    assert query(data_root, agreement) == []
    sources = "select label_set, file_name from current_label_sources"
    assert query(data_root, sources) == [("own", None)]
    assert json.loads(run_ctclip(*asked, "--endpoint", model.origin).stdout)["done"] == 0
    assert len(model.requests) == 30
    assert json.loads(run_ctclip(*plan[:5]).stdout)["pending"] == 0  # with the options of the last run
    assert json.loads(run_ctclip(*plan[:7]).stdout)["pending"] == 30  # this labeller and the 18
    assert query(data_root, "select sum(pending) from stage_status where stage = 'label'") == [(0,)]


def test_requests_at_once_are_bounded_and_used(data_root, model):
    model.delay_s = 0.02
    label(data_root, model, requests_at_once=3)
    assert model.most_at_once == 3


BAD_ANSWERS = {
    "refusal": (say(None, refusal="I cannot help with that."), "answer_refused"),
    "refusal in prose": (say("I'm sorry, but I cannot read medical reports."), "answer_not_json"),
    "cut JSON": (say('{"Emphysema": tr'), "answer_not_json"),
    "cut by the limit": (say("{}", finish_reason="length"), "answer_cut"),
    "filtered": (say("", finish_reason="content_filter"), "answer_refused"),
    "empty": (say(""), "answer_empty"),
    "nothing": (say(None), "answer_empty"),
    "a list": (say("[true]"), "answer_breaks_schema"),
    "a number": (say("1"), "answer_breaks_schema"),
    "missing findings": (say('{"Emphysema": true}'), "answer_breaks_schema"),
    "a key too many": (
        lambda handler, body: say(json.dumps(read_truth(body) | {"Note": True}))(handler, body), "answer_breaks_schema",
    ),
    "a key twice": (
        lambda handler, body: say('{"Emphysema": true, ' + json.dumps(read_truth(body))[1:])(handler, body),
        "answer_breaks_schema",
    ),
    "words for values": (
        lambda handler, body: say(json.dumps(dict.fromkeys(read_truth(body), "yes")))(handler, body),
        "answer_breaks_schema",
    ),
    "numbers for values": (
        lambda handler, body: say(json.dumps(dict.fromkeys(read_truth(body), 1)))(handler, body),
        "answer_breaks_schema",
    ),
    "nested past all depth": (say("[" * 100_000), "answer_not_json"),
}  # fmt: skip


QUICK = ("refusal", "cut JSON", "a key too many")  # one of each kind; the others run in `make test-slow`


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in BAD_ANSWERS]
)
def test_answer_that_breaks_the_schema_is_a_reject_until_retried(data_root, model, name):
    bad, reason = BAD_ANSWERS[name]
    model.plays.append(bad)
    summary = label(data_root, model)
    assert (summary["done"], summary["rejected"]) == (29, 1)
    assert query(data_root, "select reason, is_permanent from rejects") == [(reason, True)]
    assert label(data_root, model)["done"] == 0
    assert len(model.requests) == 30
    assert label(data_root, model, retry_rejects=True)["done"] == 1
    assert read_labels(data_root) == TRUTH


def test_json_in_a_code_fence_is_read(data_root, model):
    model.always = say_fenced
    assert label(data_root, model)["done"] == 30
    assert read_labels(data_root) == TRUTH


@pytest.mark.parametrize("fault", [error(500), error(503), error(429), close, cut, error(408)])
def test_passing_fault_is_asked_again(data_root, model, fault):
    model.plays.extend([fault] * 3)
    assert label(data_root, model, requests_at_once=2)["done"] == 30
    assert read_labels(data_root) == TRUTH
    assert len(model.requests) == 33


@pytest.mark.parametrize("fault", [stall, trickle])
def test_stall_is_given_up_and_asked_again(data_root, model, fault):
    model.plays.append(fault)
    assert label(data_root, model, limits=IMPATIENT)["done"] == 30
    assert read_labels(data_root) == TRUTH
    assert len(model.requests) >= 31


def test_retry_after_is_heeded_in_seconds_and_as_a_date(model):
    slept: list[float] = []
    model.plays.extend([error(429, Retry_After="7"), error(503, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT")])
    model.plays.append(error(429, Retry_After="99999"))
    ask(model, slept)
    assert slept == [7, 0, LIMITS.endpoint_longest_wait_s]


def test_report_that_no_attempt_gets_an_answer_to_stays_pending(data_root, model):
    model.by_report[TEXTS[3]] = error(500)
    summary = label(data_root, model)
    assert (summary["done"], summary["rejected"]) == (29, 0)
    assert "1 reports without an answer stay pending" in summary["detail"]
    assert query(data_root, "select item from pending_label") == [(SCANS[3],)]
    model.by_report.clear()
    assert label(data_root, model)["done"] == 1


def test_report_that_the_server_refuses_stays_pending(data_root, model, caplog):
    model.by_report[TEXTS[3]] = error(400, "maximum context length is 512 tokens")
    with caplog.at_level(logging.WARNING):
        assert label(data_root, model)["done"] == 29
    assert "maximum context length is 512 tokens" in caplog.text
    assert query(data_root, "select item from pending_label") == [(SCANS[3],)]


def test_report_is_quoted_nowhere(data_root, model, caplog):
    def echo(handler, body):
        error(400, f"bad input {body['messages']}"[-180:])(handler, body)

    model.by_report = {TEXTS[3]: echo, TEXTS[4]: say(TEXTS[4])}
    with caplog.at_level(logging.DEBUG):
        label(data_root, model)
    assert "stays pending" in caplog.text
    details = query(data_root, "select string_agg(detail, ' ') from rejects")[0][0]
    assert not [text for text in TEXTS[3:5] if text[:30] in caplog.text + details]


@pytest.mark.parametrize("fault", [error(500), close, pytest.param(stall, marks=pytest.mark.slow)])
def test_server_that_answers_nobody_stops_the_run_and_rejects_nothing(data_root, model, fault):
    model.always = fault
    with pytest.raises(EndpointUnavailableError, match="goes on from here"):
        label(data_root, model, requests_at_once=2, limits=IMPATIENT)
    assert query(data_root, "select count(*) from rejects") == [(0,)]
    assert len(model.requests) < 30
    model.always = None
    assert label(data_root, model)["done"] == 30


def test_server_that_is_not_there_stops_the_run(data_root, model):
    with socket.create_server(("127.0.0.1", 0)) as free:
        model.url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(EndpointUnavailableError, match="cannot be reached"):
        label(data_root, model)


def test_model_that_breaks_the_schema_each_time_stops_the_run(data_root, model):
    model.always = say("no")
    with pytest.raises(StageFailedError, match="rejected"):
        label(data_root, model, requests_at_once=1)
    assert len(model.requests) < 10


def test_wrong_model_stops_at_once_and_the_servers_models_are_named(data_root, model):
    model.always = error(404, "no such model")
    with pytest.raises(EndpointError, match=rf"has no model '{MODEL}'.*it has {MODEL}"):
        label(data_root, model, requests_at_once=1)
    assert len(model.requests) == 1


@pytest.mark.parametrize("given", [None, "sk-wrong-000000"])
def test_wrong_key_stops_at_once_and_is_not_shown(data_root, model, caplog, given):
    model.key = KEY
    with caplog.at_level(logging.DEBUG), pytest.raises(EndpointError, match="CTCLIP_ENDPOINT_KEY") as caught:
        label(data_root, model, requests_at_once=1, key=given)
    assert len(model.requests) == 1
    assert query(data_root, "select count(*) from rejects") == [(0,)]
    assert "sk-wrong" not in f"{caught.value!r} {caplog.text}"


def test_key_is_in_the_header_and_nowhere_else(data_root, model, caplog):
    model.key = KEY
    model.by_report[TEXTS[3]] = error(400, f"you sent {KEY}")
    with caplog.at_level(logging.DEBUG):
        assert label(data_root, model, key=KEY)["done"] == 29
    assert all(headers["Authorization"] == f"Bearer {KEY}" for headers in model.headers)
    assert "you sent ***" in caplog.text
    assert KEY not in caplog.text + repr(Endpoint(model.url, key=KEY))
    written = [path for path in data_root.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
    assert not written


@pytest.mark.parametrize("key", ["two words", "a\nb", "clé"])
def test_key_that_no_header_can_hold_is_refused_and_not_shown(key):
    with pytest.raises(ConfigurationError, match="the key") as caught:
        Endpoint("http://127.0.0.1/v1").with_key(key)
    assert key not in str(caught.value)
    assert Endpoint("http://127.0.0.1/v1").with_key(f" {KEY}\n").key == KEY


def test_no_proxy_sees_a_request_to_this_machine(model, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.getsockname()[1]}")
        assert ask(model)["choices"]


def test_redirect_to_another_host_is_refused_and_gets_no_key(model):
    with LanguageModel().running() as other:
        for status in (301, 302, 303, 307, 308):
            model.plays.append(error(status, Location=f"{other.url}/chat/completions"))
            with pytest.raises(EndpointError, match=f"redirects to {other.origin}"):
                ask(model, key=KEY)
        assert not other.requests


def test_redirect_within_the_server_is_followed(model):
    model.plays.append(error(307, Location="/gpu1/v1/chat/completions"))
    assert ask(model)["choices"]
    assert model.paths == ["/v1/chat/completions", "/gpu1/v1/chat/completions"]


def test_redirects_in_a_circle_end(model):
    model.always = error(308, Location="/v1/chat/completions")
    with pytest.raises(EndpointError, match="redirects"):
        ask(model)


def test_something_else_than_a_model_is_named(model):
    model.always = lambda handler, _: send_json(handler, {"hello": "world"})
    with pytest.raises(EndpointUnavailableError, match="does not answer as OpenAI's interface does"):
        ask(model)


def test_answer_without_end_is_given_up(model):
    model.always = say("x" * 2_000_000)
    with pytest.raises(EndpointUnavailableError, match="more than"):
        ask(model)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1", True), ("127.8.8.8", True), ("10.1.2.3", True), ("172.16.0.1", True), ("172.32.0.1", False),
        ("192.168.1.1", True), ("192.169.0.1", False), ("8.8.8.8", False), ("::1", True), ("fd00::1", True),
        ("fe80::1%eth0", True), ("2001:4860:4860::8888", False), ("::ffff:8.8.8.8", False), ("::ffff:10.0.0.1", True),
        ("64:ff9b::808:808", False), ("2002:808:808::1", False), ("100.64.0.1", False), ("203.0.113.1", False),
        ("0.0.0.0", True), ("0.1.2.3", False), ("240.0.0.1", False),
    ],
)  # fmt: skip
def test_addresses_of_the_house(address, expected):
    assert is_local(address) is expected


def resolve_to(monkeypatch: pytest.MonkeyPatch, addresses: list[str]) -> None:
    """Lets every name resolve to these addresses."""
    real = socket.getaddrinfo

    def getaddrinfo(host: str, port: int, *arguments: Any, **options: Any) -> list[Any]:
        if host[0].isdigit():
            return real(host, port, *arguments, **options)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


def test_name_with_one_remote_address_is_remote(monkeypatch):
    resolve_to(monkeypatch, ["10.0.0.1", "93.184.215.14"])
    with pytest.raises(ConfigurationError, match=r"93\.184\.215\.14.*--allow-remote"):
        find_addresses(Endpoint("https://llm.example/v1"))
    assert find_addresses(Endpoint("https://llm.example/v1", is_remote_allowed=True)) is None
    with pytest.raises(ConfigurationError, match="https alone"):
        find_addresses(Endpoint("http://llm.example/v1", is_remote_allowed=True))


def test_remote_host_gets_no_report(data_root, model, monkeypatch):
    resolve_to(monkeypatch, ["93.184.215.14"])
    model.url = model.url.replace("127.0.0.1", "llm.example")
    with pytest.raises(ConfigurationError, match="leave the house"):
        label(data_root, model)
    assert not model.requests


def test_name_that_resolves_elsewhere_later_is_still_asked_where_it_was_checked(model, monkeypatch):
    real = socket.getaddrinfo
    asked = []

    def getaddrinfo(host: str, *arguments: Any, **options: Any) -> Any:
        asked.append(host)
        if host == "llm.example":
            assert asked.count(host) == 1, "the name is resolved twice"
            host = "127.0.0.1"
        return real(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    port = model.origin.rpartition(":")[2]
    model.url = f"http://llm.example:{port}/v1"
    ask(model)
    assert model.headers[0]["Host"] == f"llm.example:{port}"


def test_host_is_asked_at_the_address_that_answers(model, monkeypatch):
    resolve_to(monkeypatch, ["127.0.0.2", "127.0.0.1"])  # nobody listens on the first
    model.url = model.url.replace("127.0.0.1", "llm.example")
    ask(model)
    assert len(model.requests) == 1


@pytest.mark.parametrize(
    "url",
    ["", "127.0.0.1:8000", "ftp://127.0.0.1", "http://", "file:///etc/passwd", "http://[", "http://127.0.0.1:99999"],
)
def test_address_that_is_none_is_refused(url):
    with pytest.raises(ConfigurationError, match="--endpoint"):
        parse_endpoint(url)


@pytest.mark.parametrize(
    "url",
    ["http://me:hush@127.0.0.1/v1", "http://127.0.0.1/v1?api_key=hush", "http://h/#hush", "me:hush@127.0.0.1/v1"],
)
def test_address_with_a_secret_is_refused_and_not_shown(url):
    with pytest.raises(ConfigurationError, match="--endpoint") as caught:
        parse_endpoint(url)
    assert "hush" not in str(caught.value)


def test_base_address_is_completed():
    assert parse_endpoint("http://127.0.0.1:8000") == "http://127.0.0.1:8000/v1"
    assert parse_endpoint("http://127.0.0.1:8000/v1/chat/completions") == "http://127.0.0.1:8000/v1"
    assert parse_endpoint("https://gpu/llm/v1/") == "https://gpu/llm/v1"


def test_killed_run_loses_no_answer_that_came(data_root, model):
    model.delay_s = 0.01
    code = """
import sys
from pathlib import Path
from tasks.labels.answers import record_answers
from tasks.labels.endpoint_address import Endpoint
from tasks.labels.label import plan_labels
from tasks.run.selection import Selection
from tasks.run.stage_run import open_run
from ctclip_model.device import Precision
from ctclip_model.labelling.questions import Questionnaire
questions = Questionnaire(sys.argv[3])
with open_run(Path(sys.argv[1]), "label", questions.labeller_id) as run:
    reports = plan_labels(
        run, questions.labeller_id, Precision.float32, Selection(), force=False, retry_rejects=False
    )
    record_answers(run, questions, reports, Endpoint(sys.argv[2], requests_at_once=2))
"""
    last = [text for _, text in sorted(zip(SCANS, TEXTS, strict=True))[20:]]
    model.by_report = dict.fromkeys(last, stall)
    journal = AnswerJournal(data_root, QUESTIONS.labeller_id).path
    with start_python(code, data_root, model.url, MODEL) as process:
        wait_for(lambda: process.poll() is not None or (journal.exists() and journal.read_text().count("\n") == 20))
        assert process.poll() is None, process.stderr and process.stderr.read()
        os.kill(process.pid, signal.SIGKILL)
    assert query(data_root, "select count(*) from labels") == [(0,)]
    with journal.open("a") as file:
        file.write('\n["train_29_a", "f", [tr')  # a line that the kill cut
    asked = len(model.requests)
    model.by_report = {}
    assert label(data_root, model)["done"] == 30
    assert len(model.requests) == asked + 10
    assert read_labels(data_root) == TRUTH


def test_answer_about_another_text_is_not_taken_from_the_journal(data_root):
    journal = AnswerJournal(data_root, QUESTIONS.labeller_id)
    journal.add(SCANS[0], "old", [True] * 18)
    assert journal.read({SCANS[0]: ("text", "new")}) == {}
    assert journal.read({SCANS[0]: ("text", "old")}) == {SCANS[0]: [True] * 18}


def test_plan_estimates_requests_tokens_time_and_cost(data_root, model):
    from tasks.labels.estimate import Prices

    publish(data_root)
    given = {"labeller": f"openai:{MODEL}"}
    plan = explain_plan(data_root, "label", 5, given, Prices(input=2.0, output=10.0))
    estimate = plan["estimate"]
    assert (plan["pending"], estimate["requests"], estimate["is_measured"]) == (30, 30, False)
    assert estimate["cost"] == pytest.approx((estimate["input_tokens"] * 2 + estimate["output_tokens"] * 10) / 1e6)
    assert 30 * 300 < estimate["input_tokens"] < 30 * 1500
    assert 30 * 80 < estimate["output_tokens"] < 30 * 250
    assert not model.requests
    model.by_report[TEXTS[3]] = error(500)
    label(data_root, model)
    again = explain_plan(data_root, "label", 5, given)["estimate"]
    assert (again["requests"], again["is_measured"], again["cost"]) == (1, True, None)
    assert explain_plan(data_root, "label", 5, {"labeller": "tfidf"})["estimate"] is None


@pytest.mark.usefixtures("prefect_server")
def test_command_labels_and_scores_on_hand_labels_with_the_key_of_the_environment(data_root, model, tmp_path):
    model.key = KEY
    model.by_report = {}
    hand = write_hand_labels(
        tmp_path / "hand.csv",
        [[f"h{n}", text, *row] for n, (text, row) in enumerate(zip(TEXTS, LABELS.tolist(), strict=True))],
    )
    done = run_ctclip(
        "label", "--json", "--data-root", data_root, "--labeller", f"openai:{MODEL}", "--endpoint", model.origin,
        "--hand-labels", hand, CTCLIP_ENDPOINT_KEY=KEY,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["done"] == 30
    assert read_labels(data_root) == TRUTH
    assert query(data_root, "select f1 from labeller_scores where abnormality = 'Emphysema'") == [(1.0,)]
    assert KEY not in done.stdout + done.stderr
    recorded = query(data_root, "select distinct parameters ->> 'endpoint' from runs where stage = 'label'")
    assert recorded == [(model.origin,)]
    assert not [path for path in data_root.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--labeller", f"openai:{MODEL}"], "needs --endpoint"),
        (["--labeller", "tfidf", "--findings", "own.toml"], "goes with --labeller openai:MODEL"),
        (["--labeller", "openai:m", "--findings", "nowhere.toml"], "nowhere.toml: cannot be read"),
        (["--labeller", "openai:", "--endpoint", "http://127.0.0.1"], "name the server's model"),
        (["--labeller", f"openai:{MODEL}", "--endpoint", "http://me:hush@127.0.0.1"], "in the environment"),
    ],
)
def test_command_refuses_what_cannot_work_in_one_line(data_root, arguments, message):
    done = run_ctclip("label", "--data-root", data_root, *arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert "hush" not in done.stderr + done.stdout


@pytest.mark.usefixtures("prefect_server")
def test_secret_of_prefect_holds_the_key(monkeypatch):
    from prefect.blocks.system import Secret

    from tasks.settings import ENDPOINT_KEY_BLOCK
    from tasks.stages.endpoint_key import load_endpoint_key

    monkeypatch.delenv("CTCLIP_ENDPOINT_KEY", raising=False)
    assert load_endpoint_key() is None
    Secret(value=KEY).save(ENDPOINT_KEY_BLOCK)
    try:
        assert load_endpoint_key() == KEY
    finally:
        Secret.delete(ENDPOINT_KEY_BLOCK)
