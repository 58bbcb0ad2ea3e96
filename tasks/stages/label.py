"""Label: a labeller reads the report of each scan, and again only if the text or the labeller changes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from ctclip_model.device import Precision
from ctclip_model.errors import ConfigurationError
from ctclip_model.labelling.questions import Questionnaire
from tasks.labels.answers import record_answers
from tasks.labels.endpoint_address import Endpoint, parse_endpoint
from tasks.labels.label import plan_labels, record_labels
from tasks.labels.labellers import OPENAI, LabellerReference
from tasks.labels.score import HandScoring, plan_scoring, record_trained_on, score_answers, score_labeller
from tasks.run.collector import pausing_collector
from tasks.run.selection import Selection
from tasks.run.stage_run import StageRun
from tasks.stages.endpoint_key import load_endpoint_key


class LabellingOptions(Protocol):
    """Options of the flow that choose the machine."""

    @property
    def device(self) -> str: ...
    @property
    def dtype(self) -> Precision: ...
    @property
    def endpoint(self) -> str | None: ...
    @property
    def allow_remote(self) -> bool: ...
    @property
    def requests_at_once(self) -> int: ...


@dataclass(frozen=True)
class Labelling:
    """Machine of a labelling: a device and precision here, or an endpoint."""

    device: str
    dtype: Precision
    endpoint: Endpoint | None = None


def choose_work(labeller: LabellerReference | Questionnaire, options: LabellingOptions) -> Labelling:
    """Machine of a labelling. The precision of a language model is its server's.

    Raises `ConfigurationError` for a language model without an endpoint, and for an endpoint without one.
    """
    url = options.endpoint
    if isinstance(labeller, LabellerReference):
        if url is not None:
            raise ConfigurationError(f"--endpoint goes with --labeller {OPENAI}MODEL")
        return Labelling(options.device, options.dtype)
    if url is None:
        raise ConfigurationError(f"--labeller {OPENAI}{labeller.model} needs --endpoint http://HOST:PORT/v1")
    endpoint = Endpoint(parse_endpoint(url), options.allow_remote, options.requests_at_once)
    return Labelling(options.device, Precision.float32, endpoint)


@task(cache_policy=NO_CACHE)
def note_training_reports(run: StageRun, labeller: LabellerReference | Questionnaire, trained_on: Path) -> None:
    """Records the reports that trained an imported labeller."""
    record_trained_on(run, labeller.labeller_id, trained_on)


@pausing_collector()
def plan_labelling(
    run: StageRun,
    labeller: LabellerReference | Questionnaire,
    dtype: Precision,
    selection: Selection,
    force: bool,
    retry_rejects: bool,
) -> dict[str, tuple[str, str]]:
    """Reports with a new text or labeller, by scan."""
    return plan_labels(run, labeller.labeller_id, dtype, selection, force=force, retry_rejects=retry_rejects)


@task(cache_policy=NO_CACHE)
def label_reports(
    run: StageRun, labeller: LabellerReference | Questionnaire, reports: dict[str, tuple[str, str]], work: Labelling
) -> None:
    """Labels the reports and records the labels."""
    if isinstance(labeller, Questionnaire):
        record_answers(run, labeller, reports, _unlock(work.endpoint))
    else:
        record_labels(run, labeller, reports, work.device, work.dtype)
    get_run_logger().info("%d reports labelled by %s", run.count_done, labeller.labeller_id)


def plan_hand_scoring(
    run: StageRun, labeller: LabellerReference | Questionnaire, hand_labels: Path, dtype: Precision, force: bool
) -> HandScoring | None:
    """Hand-labelled reports that score the labeller, or None if nothing about either is new."""
    is_trained_here = isinstance(labeller, LabellerReference)
    return plan_scoring(run, labeller.labeller_id, hand_labels, dtype, force=force, is_trained_here=is_trained_here)


@task(cache_policy=NO_CACHE)
def score_on_hand_labels(
    run: StageRun, labeller: LabellerReference | Questionnaire, scoring: HandScoring, work: Labelling
) -> None:
    """Scores the labeller on the hand-labelled reports."""
    if isinstance(labeller, Questionnaire):
        score_answers(run, labeller, scoring, _unlock(work.endpoint))
    else:
        score_labeller(run, labeller, scoring, work.device, work.dtype)
    get_run_logger().info("%s scored on %d reports", labeller.labeller_id, len(scoring.reports.texts))


def _unlock(endpoint: Endpoint | None) -> Endpoint:
    """The endpoint with its key, which is read in the task and is no parameter of it."""
    assert endpoint is not None, "choose_work refuses a language model without one"
    return endpoint.with_key(load_endpoint_key())
