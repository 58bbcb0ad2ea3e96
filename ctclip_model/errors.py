"""Every error that the project raises on purpose.

CTCLIPError
├── ConfigurationError        an option or setting is wrong, and nothing was done
├── BadItemError              one item cannot be used: a stage records a reject and goes on
│   ├── BadNameError          a volume or scan name does not parse
│   ├── VolumeError           a volume file is unreadable, or differs from its header
│   ├── MetadataError         a CSV or one of its rows is missing or malformed
│   ├── DownloadError         a file's size or hash differs from the Hub's or the bucket's
│   ├── ReportError           a report has no text
│   └── AnswerError           a language model's answer about a report cannot be used
├── ShardError                a shard is damaged or has another recipe
├── CheckpointError           a weights file or model folder is missing, damaged, or another model's
├── EncoderError              an encoder of another package fails, or breaks what it promises
├── MissingInputError         a stage's input does not exist yet (the message names the stage that makes it)
├── DivergedError             the loss of a training is not a finite number
├── PreemptedError            SIGTERM ended a training, which saved its state for the same call to continue
├── StorageError              a training could not write its files, for example to a full disk
├── WorkerDiedError           a process of a training or of `embed` ended without a message (the same call goes on)
├── OrderWithdrawnError       the run that placed an order has ended
├── LeaseLostError            another run of the stage took its lease over, and this run writes no more
├── StageFailedError          too many of a stage's items were rejected
├── RemoteError               the Hub or a bucket refuses a request (the message says how to solve it)
│   ├── RemoteAccessError     credentials are missing or refused
│   ├── RemoteNotFoundError   there is no such bucket, repository or file
│   ├── RemoteUnavailableError  the Hub or bucket is out of reach or answers with errors (a rerun continues from here)
│   ├── FileRefusedError      one file is refused, and the others are not
│   └── HubError              the Hugging Face Hub refuses a request
│       ├── HubAccessError    a token is missing or refused, or terms are not accepted (also a RemoteAccessError)
│       ├── HubNotFoundError  there is no such repository, revision or file (also a RemoteNotFoundError)
│       └── HubUnavailableError  the Hub is out of reach or answers with errors (also a RemoteUnavailableError)
├── EndpointError             a language model's server refuses a request (the message says how to solve it)
│   ├── RequestRefusedError   the server refuses the request for one report
│   └── EndpointUnavailableError  the server is out of reach or answers with errors (a rerun continues from here)
├── PrefectError              the Prefect server cannot be started
└── WarehouseError            the warehouse cannot be opened, migrated or published
    └── CheckFailedError      new records break an invariant, and the published warehouse stays as it was

A `BadItemError` carries a `reason`: the reject's code in the table `rejects`.
"""

from __future__ import annotations


class CTCLIPError(Exception):
    """The root of every error raised on purpose. Its text is one clear line for a person."""


class ConfigurationError(CTCLIPError, ValueError):
    """An option or setting is wrong, and nothing was done."""


class BadItemError(CTCLIPError):
    """One item (a volume, a scan, a row) cannot be used. `reason` is the reject's code."""

    def __init__(self, item: str, reason: str, detail: str) -> None:
        super().__init__(item, reason, detail)  # all three arguments, or the error could not be unpickled
        self.item = item
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.item}: {self.detail} [{self.reason}]"


class BadNameError(BadItemError, ValueError):
    """A volume or scan name does not parse."""


class VolumeError(BadItemError):
    """A volume file is unreadable, or differs from its header."""


class MetadataError(BadItemError):
    """A CSV or one of its rows is missing or malformed."""


class DownloadError(BadItemError):
    """A downloaded file's size or hash differs from the one that the Hub or the bucket states."""


class ReportError(BadItemError):
    """A report has no text."""


class AnswerError(BadItemError):
    """A language model's answer about a report breaks its schema, or is a refusal."""


class ShardError(CTCLIPError):
    """A shard is damaged or has another recipe."""


class CheckpointError(CTCLIPError):
    """A weights file or model folder is missing, damaged, or another model's."""


class EncoderError(CTCLIPError):
    """An encoder of another package fails, or breaks what it promises. The message names the encoder."""


class MissingInputError(CTCLIPError):
    """A stage's input does not exist yet. The message names the stage that makes it."""


class DivergedError(CTCLIPError):
    """The loss of a training is not a finite number. The last checkpoint stays."""


class PreemptedError(CTCLIPError):
    """SIGTERM ended a training, which saved its state. The same call continues it."""


class StorageError(CTCLIPError):
    """Files could not be written, for example to a full disk. Earlier checkpoints, rows and pages stay."""


class WorkerDiedError(CTCLIPError):
    """A process of a training or of `embed` ended without a message, as after a crash. The same call continues."""


class OrderWithdrawnError(CTCLIPError):
    """The run that placed an order has ended, so that the order's work is no longer needed."""


class LeaseLostError(CTCLIPError):
    """Another run of the stage took its lease over, as after a suspension of this machine. This run writes no more."""


class StageFailedError(CTCLIPError):
    """Too many of a stage's items were rejected, or its worker died for good."""


class RemoteError(CTCLIPError):
    """The Hub or a bucket refuses a request. The message says how to solve it."""


class RemoteAccessError(RemoteError):
    """Credentials are missing or refused."""


class RemoteNotFoundError(RemoteError):
    """There is no such bucket, repository or file."""


class RemoteUnavailableError(RemoteError):
    """The Hub or a bucket is out of reach or answers with errors. A rerun continues from here."""


class FileRefusedError(RemoteError):
    """One file is refused, although others of the same repository or bucket may be read."""


class HubError(RemoteError):
    """The Hugging Face Hub refuses a request. The message says how to solve it."""


class HubAccessError(HubError, RemoteAccessError):
    """The Hub needs a token, refuses the token, or asks to accept terms."""


class HubNotFoundError(HubError, RemoteNotFoundError):
    """The Hub has no such repository, revision or file."""


class HubUnavailableError(HubError, RemoteUnavailableError):
    """The Hub is out of reach or answers with errors. A rerun continues from here."""


class EndpointError(CTCLIPError):
    """A language model's server refuses every request. The message says how to solve it."""


class RequestRefusedError(EndpointError):
    """A language model's server refuses the request for one report, for example because the report is too long."""


class EndpointUnavailableError(EndpointError):
    """A language model's server is out of reach or answers with errors. A rerun continues from here."""


class PrefectError(CTCLIPError):
    """The Prefect server cannot be started."""


class WarehouseError(CTCLIPError):
    """The warehouse cannot be opened, migrated or published."""


class CheckFailedError(WarehouseError):
    """New records break an invariant. The published warehouse stays as it was."""
