"""Estimate of a labelling by a language model, before it begins: requests, tokens, time, and cost at a given price."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ctclip_model.labelling.questions import Questionnaire
from tasks.run.progress import describe_duration
from tasks.settings import REQUESTS_AT_ONCE
from warehouse import store

CHARACTERS_A_TOKEN = 4.0  # English text
CHARACTERS_A_TOKEN_OF_JSON = 3.0
ASSUMED_S_A_REQUEST = 5.0  # a model of 8 billion weights on one GPU; a labeller with earlier runs has their time


@dataclass(frozen=True)
class Prices:
    """Prices of a million tokens, in any currency."""

    input: float = 0.0
    output: float = 0.0


@dataclass(frozen=True)
class Estimate:
    """Expected size of a labelling."""

    requests: int
    input_tokens: int
    output_tokens: int
    duration_s: float
    is_measured: bool  # the duration, by earlier runs of the labeller
    cost: float | None = None  # in the prices' currency

    def __str__(self) -> str:
        basis = "as in earlier runs" if self.is_measured else f"at an assumed {ASSUMED_S_A_REQUEST:g} s a request"
        cost = "" if self.cost is None else f", cost {self.cost:,.2f}"
        return (
            f"{self.requests:,} requests, about {self.input_tokens:,} input and {self.output_tokens:,} output tokens, "
            f"about {describe_duration(self.duration_s)} {basis}{cost}"
        )


def estimate_labelling(
    data_root: Path,
    questionnaire: Questionnaire,
    texts: Sequence[str],
    requests_at_once: int = REQUESTS_AT_ONCE,
    prices: Prices | None = None,
) -> Estimate:
    """Estimates the requests about reports. The time is that of the labeller's earlier runs, if there are any."""
    frame = len(json.dumps(questionnaire.make_request("")["messages"]))
    schema = len(json.dumps(questionnaire.make_request("")["response_format"]))  # many servers put it in the prompt
    answer = len(json.dumps(dict.fromkeys(questionnaire.findings, False)))
    count_input = round(sum((frame + schema + len(text)) / CHARACTERS_A_TOKEN for text in texts))
    count_output = round(len(texts) * answer / CHARACTERS_A_TOKEN_OF_JSON)
    measured_s = _read_s_a_report(data_root, questionnaire.labeller_id)
    report_s = ASSUMED_S_A_REQUEST / requests_at_once if measured_s is None else measured_s
    cost = None if prices is None else (count_input * prices.input + count_output * prices.output) / 1e6
    return Estimate(len(texts), count_input, count_output, len(texts) * report_s, measured_s is not None, cost)


def _read_s_a_report(data_root: Path, labeller_id: str) -> float | None:
    sql = """
        select sum(duration_s) / sum(count_done) from runs
        where stage = 'label' and variant = ? and count_done > 0
    """
    ((report_s,),) = store.query(data_root, sql, [labeller_id])
    return report_s
