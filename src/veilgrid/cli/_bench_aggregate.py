"""The benchmark ``aggregate``: weighted robust figures on a committee of processes."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import msgspec
from nacl.public import PrivateKey

from veilgrid.cli._bench_plain import beside_plain
from veilgrid.cli._regions import Way
from veilgrid.errors import RunAborted
from veilgrid.mpc.bulk import BulkMailbox
from veilgrid.mpc.client import Enrolled, submit
from veilgrid.mpc.keyed import (
    ClientKeys,
    KeyedMailbox,
    Registration,
    admit,
    register,
    submit_keyed,
)
from veilgrid.mpc.layout import Layout
from veilgrid.mpc.message import Submission
from veilgrid.risk.aggregate_workload import Workload, expected, inputs_of, round_of
from veilgrid.secret import Secret, SystemRandomness
from veilgrid.signature import Signer

T = TypeVar("T")

SIZES: Final = (1_000, 10_000, 100_000)
PARTIES: Final = 3
DEGREE: Final = 1
INTAKE_SAMPLE: Final = 500
REGION_SOURCES: Final = 400
REGIONS: Final = 20
WAYS: Final = {"clear": "gateways", "committee": "small committees"}
REGIONAL: Final[tuple[tuple[str, tuple[Way, ...]], ...]] = (
    ("sum", ("clear", "committee")),
    ("weighted-mean", ("clear", "committee")),
    ("trimmed-mean", ("clear",)),
)
"""Functions that are timed region by region, and the ways that each allows."""


def bench_aggregate(sizes: tuple[int, ...] = SIZES) -> list[dict[str, Any]]:
    """Time the weighted trimmed mean by the number of sources, and what each source costs before.

    The peer is the same computation on plain numbers in one process.
    """
    rows = [round_row(Workload("trimmed-mean", size, DEGREE)) for size in sizes]
    return [
        *rows,
        *_shares(min(sizes)),
        *_intake(INTAKE_SAMPLE),
        *_hierarchy(REGION_SOURCES, REGIONS),
    ]


def _shares(count: int) -> list[dict[str, Any]]:
    """Time rounds that end early, to see each part's share of a whole one.

    The peer of a part is the round up to and with it.
    """
    parts = ("keys", "check", "figure")
    words = ("agree on keys", "agree on inputs and check them", "compute and open the figure")
    ends = [round_row(Workload("trimmed-mean", count, DEGREE, part)) for part in parts]
    rows, before = [], 0.0
    for said, end in zip(words, ends, strict=True):
        own = max(end["ours"] - before, 0.0)
        row = _summed(f"{count} sources, share: {said}", own, 0, end["ours"])
        rows.append(row | {"peer_name": "the round up to here", "ratio": None})
        before = end["ours"]
    return rows


def round_row(work: Workload, parties: int = PARTIES) -> dict[str, Any]:
    """Run a round with processes over TLS, and in the clear, and compare what they open.

    Raises
    ------
    RunAborted
        They open different numbers, or a party ended without a result.
    """
    expected(Workload(work.function, 60, work.degree))  # Compiled parts are warm from here on.
    return beside_plain(
        f"weighted trimmed mean, {work.count} sources",
        "veilgrid.risk.aggregate_workload:build_party",
        work,
        parties,
        lambda: expected(work),
        lambda result: (result or {}).get("numbers"),
    )


def _hierarchy(count: int, regions: int) -> list[dict[str, Any]]:
    """Time figures of all sources in one committee, and region by region first.

    Parties of a committee run one after another in this process, clients included; regions are
    counted as working side by side. The peer is the flat figure.
    """
    from veilgrid.cli._aggregate import Setting, aggregate_by_region, aggregate_readings
    from veilgrid.cli._readings import Readings
    from veilgrid.risk.aggregate import Question

    sources = round_of(Workload("sum", count, DEGREE)).sources
    values = tuple(1.0 + 0.01 * (row % 700) for row in range(count))
    named = tuple(f"region {row % regions}" for row in range(count))
    readings = Readings(sources, values, regions=named)
    setting = Setting(parties=PARTIES, degree=DEGREE)
    rows = []
    for function, ways in REGIONAL:
        flat = aggregate_readings(readings, Question(function=function), setting).report
        what = f"{function} of {count} sources"
        rows.append(_summed(f"{what}, flat", flat["seconds"], flat["bytes"], flat["seconds"]))
        for way in ways:
            done, found = aggregate_by_region(readings, Question(function=function), setting, way)
            words = f"{what}, {regions} {WAYS[way]} first"
            if abs(float(done.report["value"]) / float(flat["value"]) - 1) > 1e-6:
                raise RunAborted(f"{words}: the figure differs from the flat one")
            rows.append(_summed(words, found.seconds, found.octets, flat["seconds"]))
            words = f"{words}: the big committee's part"
            rows.append(_summed(words, found.top.seconds, found.top.octets, flat["seconds"]))
    return rows


def _summed(what: str, seconds: float, octets: int, flat: float) -> dict[str, Any]:
    return {
        "what": what,
        "ours": seconds,
        "peer": flat,
        "ratio": flat / seconds if seconds else None,
        "unit": "s",
        "peer_name": "the flat figure",
        "ours_megabytes": octets / 1e6,
    }


@dataclass(frozen=True)
class _Arrivals:
    """Sources with their keys and inputs, and the committee that they send to."""

    inputs: dict[str, list[int]]
    signers: dict[str, Signer]
    public: list[bytes]
    enrolled: dict[str, Enrolled]
    key: Secret[bytes]
    """Of the first party, to read what is sealed for it."""
    layout: Layout

    @classmethod
    def of(cls, count: int) -> "_Arrivals":
        """Return some sources of the timed rounds."""
        work = Workload("trimmed-mean", count, DEGREE)
        round_, draw = round_of(work), SystemRandomness().octets
        rows = inputs_of(work, round_).tolist()
        names = [one.name for one in round_.sources]
        signers = {name: Signer(Secret(draw(32))) for name in names}
        boxes = [PrivateKey(draw(32)) for _ in range(PARTIES)]
        enrolled = {name: Enrolled(signer.verify_key) for name, signer in signers.items()}
        key, layout = Secret(bytes(boxes[0])), round_.plan().layout
        public = [bytes(box.public_key) for box in boxes]
        return cls(dict(zip(names, rows, strict=True)), signers, public, enrolled, key, layout)

    def signed(self) -> Iterator[Submission]:
        """Make every source's message, signed and sealed."""
        for name, bits in self.inputs.items():
            yield submit(
                b"intake",
                name,
                bits,
                degree=DEGREE,
                box_keys=self.public,
                signer=self.signers[name],
                randomness=SystemRandomness(),
            )

    def registrations(self) -> Iterator[tuple[Registration, ClientKeys]]:
        """Register every source."""
        for name, signer in self.signers.items():
            yield register(
                b"day",
                name,
                degree=DEGREE,
                box_keys=self.public,
                signer=signer,
                randomness=SystemRandomness(),
            )


def _intake(count: int) -> list[dict[str, Any]]:
    """Time what happens per source while messages arrive: making one, and reading it.

    Once with signed and sealed messages, once with those of sources that registered keys before.
    """
    all_ = _Arrivals.of(count)
    enrolled, key, layout = all_.enrolled, all_.key, all_.layout
    made, signed = _timed(all_.signed())
    mailbox = BulkMailbox(1, PARTIES, DEGREE, b"intake", enrolled, key, layout)
    read, refused = _timed(mailbox.accept(one) for one in signed)
    _, registered = _timed(all_.registrations())
    admitted, keys = _timed(
        admit(said, b"day", enrolled[said.client], 1, PARTIES, DEGREE, key)
        for said, _ in registered
    )
    quick, keyed = _timed(
        submit_keyed(b"intake", name, bits, own)
        for (name, bits), (_, own) in zip(all_.inputs.items(), registered, strict=True)
    )
    known = {name: one for name, one in zip(all_.inputs, keys, strict=True) if one is not None}
    quick_mailbox = KeyedMailbox(1, PARTIES, DEGREE, b"intake", enrolled, key, layout, known)
    quick_read, others = _timed(quick_mailbox.accept(one) for one in keyed)
    wrong = [why for why in (*refused, *others) if why]
    if wrong:
        raise RunAborted(f"intake: {wrong[0]}")
    parts = (
        ("a source makes its message", made, signed[0]),
        ("a party reads one message", read, signed[0]),
        ("a party admits a source that registers keys", admitted, registered[0][0]),
        ("a registered source makes its message", quick, keyed[0]),
        ("a party reads one message of a registered source", quick_read, keyed[0]),
    )
    return [
        {
            "what": what,
            "ours": 1e3 * seconds / count,
            "peer": None,
            "ratio": None,
            "unit": "ms",
            "count": count,
            "ours_megabytes": len(msgspec.msgpack.encode(said)) / 1e6,
        }
        for what, seconds, said in parts
    ]


def _timed(work: Iterable[T]) -> tuple[float, list[T]]:
    began = time.perf_counter()
    done = list(work)
    return time.perf_counter() - began, done
