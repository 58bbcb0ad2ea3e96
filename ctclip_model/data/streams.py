"""Streams of planes: a volume that is read front to back, and one that is turned to LPS on the way."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from ctclip_model.data.nifti import NiftiHeader
from ctclip_model.data.orientation import Turn


class PlaneStream(Protocol):
    """An open volume. `read_plane` gives the next plane (second axis, first axis), `finish` checks the end."""

    path: Path
    header: NiftiHeader

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def read_plane(self, out: NDArray) -> None: ...

    def finish(self) -> None: ...


class TurnedStream:
    """A stream whose planes are permuted and flipped within the plane.

    A flip along the slices is left to the reader, who walks the result backwards. A permutation that moves the slices
    holds the volume in memory. A swap within the plane holds a plane.
    """

    def __init__(self, stream: PlaneStream, turn: Turn) -> None:
        self.path = stream.path
        self._stream, self._turn = stream, turn
        first, second, third = (stream.header.shape[axis] for axis in turn.axes)
        self.header = stream.header.with_shape((first, second, third))
        self._plane = np.empty((stream.header.shape[1], stream.header.shape[0]), stream.header.dtype)
        self._held: NDArray | None = None
        self._position = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leaves the inner stream to whoever opened it."""

    def read_plane(self, out: NDArray) -> None:
        """Fills `out` (second axis, first axis) with the next plane of the turned volume."""
        plane = self._next_plane()
        steps = [-1 if is_flipped else 1 for is_flipped in self._turn.flips]
        out[:] = plane[:: steps[1], :: steps[0]]

    def finish(self) -> None:
        self._stream.finish()

    def _next_plane(self) -> NDArray:
        if self._turn.axes[2] == 2:
            self._stream.read_plane(self._plane)
            return self._plane if self._turn.axes[0] == 0 else self._plane.T
        if self._held is None:
            self._held = self._hold().transpose(self._turn.axes)
        self._position += 1
        return self._held[:, :, self._position - 1].T

    def _hold(self) -> NDArray:
        """The volume in memory (first axis, second axis, third axis)."""
        planes = np.empty((self._stream.header.shape[2], *self._plane.shape), self._plane.dtype)
        for plane in planes:
            self._stream.read_plane(plane)
        return planes.transpose(2, 1, 0)
