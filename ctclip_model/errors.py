"""Every error that the project raises on purpose.

CTCLIPError
├── ConfigurationError        an option or setting is wrong; nothing was done
├── BadItemError              one item cannot be used; a stage records it as a reject and goes on
│   ├── BadNameError          a volume or scan name does not parse
│   ├── VolumeError           a volume file is unreadable, or is not what its header says
│   ├── MetadataError         a CSV or one of its rows is missing or malformed
│   ├── DownloadError         a file did not arrive as the Hub says that it is
│   └── ReportError           a report has no text
├── ShardError                a shard is damaged, or not of the recipe that was asked for
├── CheckpointError           a weights file is missing, damaged or of another model
├── MissingInputError         a stage's input is not there yet; the message says which stage makes it
├── DivergedError             training's loss is no longer a finite number
├── PreemptedError            training was asked to end, and has saved its state; the same call goes on from there
├── StorageError              what a training makes could not be written, as where the disk is full
├── WorkerDiedError           a training's process ended without a word; the same call goes on from its checkpoint
├── OrderWithdrawnError       what a worker was to do, or is doing, is wanted no more
├── LeaseLostError            another run of the stage took its lease over, and this one writes no more
├── StageFailedError          too many of a stage's items were rejected
├── HubError                  the Hugging Face Hub does not give what was asked for; the message says what to do
│   ├── HubAccessError        it wants a token, another one, or its terms accepted
│   ├── HubNotFoundError      it has no such repository, revision or file
│   └── HubUnavailableError   it cannot be reached, or answers with errors; a rerun goes on from here
└── WarehouseError            the warehouse cannot be opened, migrated or published
    └── CheckFailedError      new records break an invariant; the published warehouse stays as it was

A `BadItemError` carries a `reason`: the code that stands in the `rejects` table.
"""

from __future__ import annotations


class CTCLIPError(Exception):
    """The root of every error raised on purpose; its text is one clear line for a person."""


class ConfigurationError(CTCLIPError, ValueError):
    """An option or setting is wrong; nothing was done."""


class BadItemError(CTCLIPError):
    """One item (a volume, a scan, a row) cannot be used; `reason` is the reject's code."""

    def __init__(self, item: str, reason: str, detail: str) -> None:
        super().__init__(item, reason, detail)  # all three, so that it survives pickling between processes
        self.item = item
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.item}: {self.detail} [{self.reason}]"


class BadNameError(BadItemError, ValueError):
    """A volume or scan name does not parse."""


class VolumeError(BadItemError):
    """A volume file is unreadable, or is not what its header says."""


class MetadataError(BadItemError):
    """A CSV or one of its rows is missing or malformed."""


class DownloadError(BadItemError):
    """A file did not arrive as the Hub says that it is."""


class ReportError(BadItemError):
    """A report has no text."""


class ShardError(CTCLIPError):
    """A shard is damaged, or not of the recipe that was asked for."""


class CheckpointError(CTCLIPError):
    """A weights file is missing, damaged or of another model."""


class MissingInputError(CTCLIPError):
    """A stage's input is not there yet; the message says which stage makes it."""


class DivergedError(CTCLIPError):
    """Training's loss is no longer a finite number; the checkpoint of before stays."""


class PreemptedError(CTCLIPError):
    """Training was asked to end (SIGTERM), and has saved its state; the same call goes on from there."""


class StorageError(CTCLIPError):
    """What a training makes could not be written, as where the disk is full; what it has written before stays."""


class WorkerDiedError(CTCLIPError):
    """A training's process ended without a word (a crash, out of memory); the same call goes on from its checkpoint."""


class OrderWithdrawnError(CTCLIPError):
    """What a worker was to do, or is doing, is wanted no more: the run that ordered it has ended."""


class LeaseLostError(CTCLIPError):
    """Another run of the stage took its lease over, as from a machine that was suspended. This run writes no more."""


class StageFailedError(CTCLIPError):
    """Too many of a stage's items were rejected, or its worker died for good."""


class HubError(CTCLIPError):
    """The Hugging Face Hub does not give what was asked for; the message says what to do."""


class HubAccessError(HubError):
    """The Hub wants a token, another one, or its terms accepted."""


class HubNotFoundError(HubError):
    """The Hub has no such repository, revision or file."""


class HubUnavailableError(HubError):
    """The Hub cannot be reached, or answers with errors; a rerun goes on from here."""


class WarehouseError(CTCLIPError):
    """The warehouse cannot be opened, migrated or published."""


class CheckFailedError(WarehouseError):
    """New records break an invariant; the published warehouse stays as it was."""
