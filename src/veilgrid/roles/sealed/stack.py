"""Bids and proofs of all sites, one after the other: where each part lies [sealed 5]."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from veilgrid.errors import invariant
from veilgrid.mpc import Shares, concatenate
from veilgrid.mpc.field import Words
from veilgrid.roles.sealed.bid import Shape
from veilgrid.roles.sealed.register import Integers


@dataclass(frozen=True)
class Stack:
    """All sites' vectors, one after the other: where each part lies; public."""

    shapes: tuple[Shape, ...]
    proofs: dict[str, Shares]
    bids: dict[str, Shares]
    owner_of_variable: Integers
    owner_of_row: Integers

    @classmethod
    def of(
        cls, shapes: Sequence[Shape], bids: Sequence[Shares], proofs: Sequence[Shares | None]
    ) -> "Stack":
        """Cut bids and proofs into parts and join each part over all sites.

        A site without a proof takes its fallback. An equality has one bound, whatever was bid, and
        a row that is not bounded below or above no multiplier for that: neither would be paid for.
        """
        own = [
            shape if proof is not None else shape.still()
            for shape, proof in zip(shapes, proofs, strict=True)
        ]
        kept = [
            bid if proof is not None else _idle(shape, bid)
            for shape, bid, proof in zip(shapes, bids, proofs, strict=True)
        ]
        given = [proof if proof is not None else bids[0][:0] for proof in proofs]
        bids_by_part = _joined([shape.bid_parts for shape in own], kept)
        proofs_by_part = _joined([shape.proof_parts for shape in own], given)
        equal, lower, upper = (
            np.concatenate([getattr(shape, name) for shape in own])
            for name in ("is_equality", "has_lower", "has_upper")
        )
        row_lower, row_upper = bids_by_part["row_lower"], bids_by_part["row_upper"]
        bids_by_part["row_upper"] = _where(equal, row_lower.data, row_upper)
        for name, has in (("row_above", lower), ("row_below", upper)):
            part = proofs_by_part[name]
            proofs_by_part[name] = _where(~has, np.zeros_like(part.data), part)
        return cls(
            shapes=tuple(own),
            bids=bids_by_part,
            proofs=proofs_by_part,
            owner_of_variable=owners_of([shape.variable_count for shape in own]),
            owner_of_row=owners_of([shape.row_count for shape in own]),
        )

    def columns(self, attribute: str) -> Integers:
        """Return indices into the joined variables."""
        return self._shifted(attribute, [shape.variable_count for shape in self.shapes])

    def rows(self, attribute: str) -> Integers:
        """Return indices into the joined rows."""
        return self._shifted(attribute, [shape.row_count for shape in self.shapes])

    def times(self, attribute: str) -> Integers:
        """Return indices into the joined intervals."""
        return self._shifted(attribute, [shape.interval_count for shape in self.shapes])

    def _shifted(self, attribute: str, counts: Sequence[int]) -> Integers:
        starts = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int64)
        parts = [
            np.asarray(getattr(shape, attribute), dtype=np.int64) + start
            for shape, start in zip(self.shapes, starts, strict=True)
        ]
        return np.concatenate(parts)


def _idle(shape: Shape, bid: Shares) -> Shares:
    """Return the bid of a site that takes its fallback as its load."""
    times = shape.interval_count
    fallback, (alone, cost) = bid[2 * times : 4 * times], (4 * times, 4 * times + 1)
    # Who has no devices has none that cost.
    spent = bid[cost : cost + 1] * int(shape.variable_count > 0)
    return concatenate([fallback, fallback, bid[alone : alone + 1], spent])


def _where(chosen: "np.typing.NDArray[np.bool_]", data: Words, otherwise: Shares) -> Shares:
    """Take other shares at some places."""
    mixed = np.where(chosen[:, np.newaxis], data, otherwise.data)
    return Shares(np.ascontiguousarray(mixed), otherwise.bound, otherwise.constant)


def owners_of(counts: Sequence[int]) -> Integers:
    return np.repeat(np.arange(len(counts), dtype=np.int64), counts)


def _joined(layouts: Sequence[dict[str, int]], vectors: Sequence[Shares]) -> dict[str, Shares]:
    pieces: dict[str, list[Shares]] = {name: [] for name in layouts[0]}
    for layout, vector in zip(layouts, vectors, strict=True):
        start = 0
        for name, length in layout.items():
            pieces[name].append(vector[start : start + length])
            start += length
        invariant(start == len(vector), "a vector has the length of its parts")
    return {name: concatenate(parts) for name, parts in pieces.items()}
