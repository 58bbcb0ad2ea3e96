"""Faults of the loopback hub, on request."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Fault:
    """One thing to go wrong with the next `times` requests whose path holds `on`.

    A number is a status code to answer with. Of a body: `reset` breaks the connection midway, `stall` sends nothing
    more, `truncated` ends early, `wrong_bytes` and `wrong_size` are sent as if they were right,
    `no_ranges` sends all. `redirect` leads to a page that is no file, `traversal` lists a path outside of the
    repository.
    """

    kind: int | str
    on: str = "/"
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)


class Faults:
    """The faults still to be played."""

    def __init__(self) -> None:
        self.waiting: list[Fault] = []
        self.played: list[tuple[int | str, str]] = []

    def play(self, kind: int | str, on: str = "/", times: int = 1, **headers: str) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.waiting.append(Fault(kind, on, times, named))

    def take(self, path: str, kinds: tuple[type | str, ...]) -> Fault | None:
        """The fault of one of the kinds, or of any of their type, that this request has to suffer."""
        for fault in self.waiting:
            if fault.times and fault.on in path and (fault.kind in kinds or type(fault.kind) in kinds):
                fault.times -= 1
                self.played.append((fault.kind, path))
                return fault
        return None
