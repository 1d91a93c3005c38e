"""The flat array that holds all parameters of a program, or their gradients or moments, and the way to it by their names.

Every dimension that is a width of features is padded with zeros to a multiple of PAD, so that loops over vectors have no
tails. A padded place stays zero: its value meets zeros only, so its gradient is zero, and so are its moments.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

PAD = 16  # numbers


class Span(NamedTuple):
    """Some rows or columns of a matrix that lie side by side, and the room that they have in the packed one."""

    size: int
    room: int

    @classmethod
    def padded(cls, size: int) -> Span:
        return cls(size, -(-size // PAD) * PAD)

    @classmethod
    def exact(cls, size: int) -> Span:
        return cls(size, size)


class Place(NamedTuple):
    """The place of one parameter in the flat array: as a matrix of rows and columns, or as its transpose."""

    name: str
    shape: tuple[int, ...]
    rows: tuple[Span, ...]
    columns: tuple[Span, ...]
    transposed: bool = False
    offset: int = 0

    @property
    def room(self) -> int:
        """Numbers of the flat array until the next parameter may begin."""
        return Span.padded(count_room(self.rows) * count_room(self.columns)).room

    def take(self, flat: Tensor) -> Tensor:
        """Return the parameter's numbers in its own shape: a copy."""
        rows, columns = self._indices(flat)
        matrix = flat[rows[:, None] + columns]
        return (matrix.T if self.transposed else matrix).reshape(self.shape)

    def put(self, flat: Tensor, values: Tensor) -> None:
        """Write numbers that have the parameter's shape to their places."""
        rows, columns = self._indices(flat)
        if self.transposed:
            flat[rows[:, None] + columns] = values.reshape(len(columns), len(rows)).T.to(flat)
        else:
            flat[rows[:, None] + columns] = values.reshape(len(rows), len(columns)).to(flat)

    def _indices(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """Return where each row begins in the flat array, and each column in its row."""
        rows, columns = list_indices(self.rows), list_indices(self.columns)
        return self.offset + rows * count_room(self.columns), columns


def count_room(spans: tuple[Span, ...]) -> int:
    return sum(span.room for span in spans)


def list_indices(spans: tuple[Span, ...]) -> Tensor:
    """Return the packed index of every row or column."""
    firsts = [sum(span.room for span in spans[:k]) for k in range(len(spans))]
    return torch.cat([first + torch.arange(span.size) for first, span in zip(firsts, spans, strict=True)])


class Packing(NamedTuple):
    """The places of all parameters: those of hidden matrices first, then all others."""

    places: tuple[Place, ...]
    hidden: int  # numbers of the flat array that are of hidden matrices
    total: int  # numbers of the flat array

    @classmethod
    def arrange(cls, places: Mapping[str, Place], hidden: set[str]) -> Packing:
        """Give every parameter its offset; the order within the two groups is that of `places`."""
        arranged, end = {}, 0
        for first in (True, False):
            for name, place in places.items():
                if (name in hidden) == first:
                    arranged[name] = place._replace(offset=end)
                    end += place.room
            if first:
                boundary = end
        return cls(tuple(arranged[name] for name in places), boundary, end)

    def empty(self, dtype: torch.dtype) -> Tensor:
        """Return a flat array of zeros, which it must be where no parameter is."""
        return torch.zeros(self.total, dtype=dtype)

    def pack(self, values: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
        """Return a flat array with the values of all parameters."""
        flat = self.empty(dtype)
        for place in self.places:
            place.put(flat, values[place.name].detach())
        return flat

    def unpack(self, flat: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield the name and the values of each parameter."""
        for place in self.places:
            yield place.name, place.take(flat)
