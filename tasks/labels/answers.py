"""Labels by a language model behind an endpoint: several requests at once, each answer kept on disk as it comes."""

from __future__ import annotations

import contextvars
import json
import logging
import os
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ctclip_model.errors import AnswerError, EndpointUnavailableError, RequestRefusedError
from ctclip_model.labelling.questions import Questionnaire
from tasks.labels.endpoint_address import Endpoint
from tasks.labels.endpoint_client import EndpointClient
from tasks.labels.estimate import estimate_labelling
from tasks.labels.label_sources import record_set
from tasks.run.progress import show_progress
from tasks.run.stage_run import StageRun
from warehouse import store

logger = logging.getLogger(__name__)

ANSWERS = "answers"  # folder of the data root with the answers that no record file holds yet
FAILED_REQUEST = (RequestRefusedError, EndpointUnavailableError)  # errors about one report
THRESHOLD = 0.5  # between false, recorded as probability 0, and true, recorded as 1

Reports = Mapping[str, tuple[str, str]]  # {scan: (text, fingerprint)}
Answer = list[bool] | AnswerError


@dataclass
class Usage:
    """Tokens that a server counted."""

    count_input: int = 0
    count_output: int = 0

    def add(self, answer: Mapping[str, Any]) -> None:
        usage = answer.get("usage")
        if isinstance(usage, dict):
            self.count_input += _count(usage.get("prompt_tokens"))
            self.count_output += _count(usage.get("completion_tokens"))

    def __str__(self) -> str:
        return f"{self.count_input:,} input and {self.count_output:,} output tokens"


class AnswerJournal:
    """Answers of a run that are in no record file yet, `answers/<labeller_id>.jsonl` below the data root.

    A killed run loses only its requests in flight: the next one reads the journal. Needs the lease of `label`.
    """

    def __init__(self, data_root: Path, labeller_id: str) -> None:
        self.path = data_root / ANSWERS / f"{labeller_id}.jsonl"

    def read(self, reports: Reports) -> dict[str, Answer]:
        """Answers about the reports, by scan. A line that a crash cut, and answers about other texts, are left out."""
        if not self.path.exists():
            return {}
        found: dict[str, Answer] = {}
        for line in self.path.read_text("utf-8").splitlines():
            try:
                scan, fingerprint, values, reason, detail = json.loads(line)
            except ValueError:
                continue
            if scan in reports and reports[scan][1] == fingerprint:
                found[scan] = values if values is not None else AnswerError(scan, reason, detail)
        return found

    def add(self, scan: str, fingerprint: str, answer: Answer) -> None:
        """Writes an answer durably."""
        outcome = (None, answer.reason, answer.detail) if isinstance(answer, AnswerError) else (answer, "", "")
        self.path.parent.mkdir(exist_ok=True)
        with self.path.open("a") as file:
            file.write("\n" + json.dumps([scan, fingerprint, *outcome]))  # the line break ends a line that a crash cut
            file.flush()
            os.fsync(file.fileno())

    def clear(self) -> None:
        """Deletes the answers, which record files hold now."""
        self.path.unlink(missing_ok=True)


@dataclass
class _Batch:
    """Answers for the next record files."""

    run: StageRun
    questionnaire: Questionnaire
    reports: Reports
    journal: AnswerJournal
    rows: list[dict[str, Any]] = field(default_factory=list)
    rejects: list[tuple[AnswerError, str]] = field(default_factory=list)

    def __len__(self) -> int:
        return self.count_reports + len(self.rejects)

    @property
    def count_reports(self) -> int:
        """Labelled reports."""
        return len(self.rows) // len(self.questionnaire.findings)

    def add(self, scan: str, answer: Answer) -> None:
        asked = self.questionnaire
        fingerprint = self.reports[scan][1]
        if isinstance(answer, AnswerError):
            self.rejects.append((answer, fingerprint))
            return
        self.rows += [
            {
                "scan_id": scan, "abnormality": name, "labeller_id": asked.labeller_id, "fingerprint": fingerprint,
                "probability": float(value), "value": int(value), "threshold": THRESHOLD,
                "label_set": None if asked.label_set.is_built_in else asked.label_set.name,
            }
            for name, value in zip(asked.findings, answer, strict=True)
        ]  # fmt: skip

    def record(self) -> None:
        """Writes the record files and then empties the journal, whose answers they hold."""
        if self.rows:
            self.run.record("labels", self.rows)
            self.run.count_done += self.count_reports
        if self.rejects:
            self.run.reject_all(self.rejects)
        self.journal.clear()
        self.rows, self.rejects = [], []
        self.run.publish_if_due()


def record_answers(
    run: StageRun, questionnaire: Questionnaire, reports: Reports, endpoint: Endpoint, **client_options: Any
) -> None:
    """Asks a language model about the reports and records its answers.

    An answer that breaks the schema is a permanent reject. A report whose request fails stays pending. Raises
    `EndpointError` where every request would fail, and `StageFailedError` for too many rejects.
    """
    journal = AnswerJournal(run.data_root, questionnaire.labeller_id)
    batch = _Batch(run, questionnaire, reports, journal)
    if not questionnaire.label_set.is_built_in:
        _record_source(run, questionnaire)
    kept = journal.read(reports)
    for scan, known in kept.items():
        batch.add(scan, known)
    asked = [scan for scan in reports if scan not in kept]
    if asked:
        estimate = estimate_labelling(
            run.data_root, questionnaire, [reports[scan][0] for scan in asked], endpoint.requests_at_once
        )
        logger.info("%s asks %s: %s", questionnaire.labeller_id, endpoint.url, estimate)
    try:
        with show_progress("label", len(reports), "reports") as progress:
            progress.advance(len(kept))
            for scan, answer in _ask_all(run, questionnaire, asked, reports, endpoint, client_options):
                if answer is not None:
                    journal.add(scan, reports[scan][1], answer)
                    batch.add(scan, answer)
                    run.check_counts(run.count_rejected + len(batch.rejects), run.count_done + len(batch))
                progress.advance(1)
                if len(batch) >= run.limits.endpoint_batch:
                    batch.record()
    finally:
        if len(batch):
            batch.record()


def _record_source(run: StageRun, questionnaire: Questionnaire) -> None:
    """Records the label set and its source, unless they are recorded. An import has the name of its file."""
    asked = questionnaire.label_set
    record_set(run, asked)
    source = {"label_source": questionnaire.labeller_id, "label_set": asked.name, "fingerprint": asked.fingerprint}
    sql = "select 1 from current_label_sources where label_source = ? and fingerprint = ?"
    if not store.query(run.data_root, sql, [questionnaire.labeller_id, asked.fingerprint]):
        run.record("label_sources", [source])


def read_answers(
    run: StageRun, questionnaire: Questionnaire, reports: Reports, endpoint: Endpoint, **client_options: Any
) -> dict[str, list[bool]]:
    """Valid answers about the reports, by scan, without any record of them."""
    answers = _ask_all(run, questionnaire, list(reports), reports, endpoint, client_options)
    return {scan: answer for scan, answer in answers if isinstance(answer, list)}


def _ask_all(
    run: StageRun, questionnaire: Questionnaire, scans: Sequence[str], reports: Reports, endpoint: Endpoint,
    client_options: Mapping[str, Any],
) -> Iterator[tuple[str, Answer | None]]:  # fmt: skip
    """Asks about each report, several at once, and yields (scan, answer) as they come. None: the request failed.

    Raises the error of a request if every other would fail too, or if more fail in a row than are asked at once.
    """
    if not scans:
        return
    usage, count_failed, count_in_row = Usage(), 0, 0
    with EndpointClient(endpoint, run.limits, **client_options) as client:

        def ask(scan: str) -> list[bool]:
            answer = client.ask(questionnaire.make_request(reports[scan][0]))
            usage.add(answer)
            return questionnaire.read_answer(scan, answer["choices"][0])

        for scan, answer in map_in_threads(ask, scans, endpoint.requests_at_once):
            if isinstance(answer, list | AnswerError):
                count_in_row = 0
                yield scan, answer
                continue
            count_failed, count_in_row = count_failed + 1, count_in_row + 1
            if not isinstance(answer, FAILED_REQUEST) or count_in_row > endpoint.requests_at_once:
                raise answer
            logger.warning("%s has no answer and stays pending: %s", scan, answer, extra={"item": scan})
            yield scan, None
    run.detail = str(usage) + (f"; {count_failed} reports without an answer stay pending" if count_failed else "")


def map_in_threads(
    function: Callable[[str], list[bool]], items: Sequence[str], count_threads: int
) -> Iterator[tuple[str, Answer | BaseException]]:
    """Yields (item, result or error) of each item as it comes. The caller may stop at any item.

    It has to stop at an error that is not about one item: no further item is begun then.
    """
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
    ended: queue.SimpleQueue[tuple[str, Answer | BaseException]] = queue.SimpleQueue()
    is_stopped = threading.Event()
    for item in items:
        waiting.put(item)

    def work() -> None:
        while not is_stopped.is_set():
            try:
                item = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                ended.put((item, function(item)))
            except BaseException as error:  # noqa: BLE001  handed to the caller
                if not isinstance(error, (AnswerError, *FAILED_REQUEST)):
                    is_stopped.set()  # at once: every other request would fail too
                ended.put((item, error))

    for _ in range(min(count_threads, len(items))):
        context = contextvars.copy_context()  # carries the run of log lines
        threading.Thread(target=context.run, args=(work,), daemon=True).start()
    try:
        for _ in items:
            yield ended.get()
    finally:
        is_stopped.set()


def _count(value: object) -> int:
    return value if isinstance(value, int) and value >= 0 else 0
