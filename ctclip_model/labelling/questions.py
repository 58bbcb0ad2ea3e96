"""Questions to a language model: the request for one report, its JSON schema, and the reading of the answer."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ctclip_model.config import compute_fingerprint
from ctclip_model.data.label_sets import CT_RATE_18, LabelSet
from ctclip_model.errors import AnswerError

INSTRUCTIONS = """You read radiology reports of chest CT. For each abnormality below, decide what the report says.
true: the report states that the abnormality is present, in any wording, also where it is mild, old or unchanged.
false: the report denies the abnormality, names it only as a question or as history, or does not mention it.
Answer with one JSON object that has each abnormality as a key and true or false as its value, and nothing else.
Abnormalities:
"""
BASE_TOKENS, TOKENS_PER_FINDING = 256, 32  # bound of an answer's length, of which an answer needs about a third
_FENCE = re.compile(r"```(?:json)?\s*\n(.*?)\n?\s*```", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True)
class Questionnaire:
    """Question about every finding of a label set, put to a language model for one report at a time.

    `labeller_id` holds a hash of the model's name, the instructions, the schema and the settings of the request, and of
    other findings than the 18 the set's too. The address of the server is no part of it: the same model gives the same
    labels on another machine.
    """

    model: str
    label_set: LabelSet = CT_RATE_18

    @property
    def findings(self) -> tuple[str, ...]:
        return self.label_set.names

    @property
    def labeller_id(self) -> str:
        """Name under which labels are recorded."""
        name = re.sub("[^A-Za-z0-9.]+", "-", self.model).strip("-.")[:48]
        findings = () if self.label_set.is_built_in else (self.label_set.fingerprint,)
        return f"openai-{name}-{compute_fingerprint(self.make_request(''), *findings)[:8]}"

    def make_request(self, report: str) -> dict[str, Any]:
        """Body of the request for a report, as servers with OpenAI's interface take it."""
        return {
            "model": self.model,
            "messages": [
                {"role": "system", "content": INSTRUCTIONS + "\n".join(self.findings)},
                {"role": "user", "content": report},
            ],
            "temperature": 0,
            "max_tokens": BASE_TOKENS + TOKENS_PER_FINDING * len(self.findings),
            "stream": False,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "labels", "strict": True, "schema": make_schema(self.findings)},
            },
        }

    def read_answer(self, scan: str, choice: dict[str, Any]) -> list[bool]:
        """Values of the findings, in their order, in the first of an answer's `choices`.

        JSON in a code fence is read too. Raises `AnswerError` for any other answer. Its message quotes nothing of the
        answer, which may repeat the report.
        """
        message = choice.get("message")
        message = message if isinstance(message, dict) else {}
        if message.get("refusal") or choice.get("finish_reason") == "content_filter":
            raise AnswerError(scan, "answer_refused", "the model refuses to answer")
        if choice.get("finish_reason") == "length":
            raise AnswerError(scan, "answer_cut", "the answer is longer than its limit and was cut")
        content = message.get("content")
        if not isinstance(content, str) or not content.strip():
            raise AnswerError(scan, "answer_empty", "the answer is empty")
        return _check(scan, _parse(scan, content.strip()), self.findings)


def make_schema(findings: Sequence[str]) -> dict[str, Any]:
    """JSON schema of an answer: an object with true or false for each finding, and nothing else."""
    return {
        "type": "object",
        "properties": {name: {"type": "boolean"} for name in findings},
        "required": list(findings),
        "additionalProperties": False,
    }


def _parse(scan: str, content: str) -> list[tuple[str, Any]]:
    """Keys and values of the JSON object in an answer."""
    fenced = _FENCE.fullmatch(content)
    try:
        pairs = json.loads(fenced[1] if fenced else content, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError) as error:
        raise AnswerError(scan, "answer_not_json", "the answer is no JSON") from error
    if not isinstance(pairs, _Pairs):
        raise AnswerError(scan, "answer_breaks_schema", "the answer is no JSON object")
    return pairs


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as its keys and values, so that a repeated key is seen."""


def _check(scan: str, pairs: Sequence[tuple[str, Any]], findings: Sequence[str]) -> list[bool]:
    values = dict(pairs)
    missing = [name for name in findings if name not in values]
    if missing:
        detail = f"the answer lacks {len(missing)} of {len(findings)} findings: {', '.join(missing[:3])}"
    elif len(pairs) > len(findings):
        detail = f"the answer has {len(pairs) - len(findings)} keys too many"
    elif wrong := [name for name in findings if not isinstance(values[name], bool)]:
        detail = f"neither true nor false: {', '.join(wrong[:3])}"
    else:
        return [values[name] for name in findings]
    raise AnswerError(scan, "answer_breaks_schema", detail)
