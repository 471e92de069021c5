"""``veilgrid aggregate`` and the benchmark ``mpc``."""

import csv
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

from veilgrid.errors import Finding, InputError, RunAborted, VeilgridError
from veilgrid.machine import Machine, NodeId
from veilgrid.mpc import policy
from veilgrid.mpc.aggregate import Question, Sender, answer_of, program_of
from veilgrid.mpc.client import Enrolled, Mailbox, submit
from veilgrid.mpc.field import FixedPoint
from veilgrid.mpc.form import number, number_bits
from veilgrid.mpc.message import Message, Submission
from veilgrid.mpc.party import Party
from veilgrid.mpc.workload import Workload, expected
from veilgrid.node.local import ProcessResult, ProcessSpec, run_machines, run_processes
from veilgrid.node.signing import Signer
from veilgrid.node.wire import Codec
from veilgrid.secret import Randomness, Secret, SeededRandomness, SystemRandomness

_COLUMNS: Final = ("source", "value", "tier", "lower", "upper")
_LATER: Final = ("weighted-mean", "trimmed-mean", "cvar")
_OFFERED: Final = ("sum", "mean", "variance", "median", "quantile")
_REASONS: Final = {
    "invalid": "the value is not within its bounds (found by the check on shares)",
    "missing": "no reading",
    "unreadable": "no party could read its share",
    "contradictory": "sent different messages to different parties",
}


# -- readings -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reading:
    """One row: who, what, and the bounds it must keep; None for no value."""

    source: str
    value: float | None
    lower: float
    upper: float


def read_readings(path: Path) -> list[Reading]:
    """Read a CSV file of readings.

    Raises
    ------
    InputError
        Every broken rule, with row and column.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
            header = rows[0].keys() if rows else []
    except (OSError, UnicodeDecodeError) as error:
        raise InputError([Finding(str(path), f"cannot be read ({error})")]) from None
    missing = [column for column in _COLUMNS if column not in header]
    if missing:
        listed = ", ".join(missing)
        problem = f"column {listed} is missing" if rows else "holds no rows"
        raise InputError([Finding(path.name, problem, f"expected {', '.join(_COLUMNS)}")])
    findings: list[Finding] = []
    readings: list[Reading] = []
    seen: set[str] = set()
    for place, row in enumerate(rows, 2):
        reading = _reading(path.name, place, row, findings)
        if reading is None:
            continue
        if reading.source in seen:
            where = f"{path.name} row {place}, column source"
            findings.append(Finding(where, f"{reading.source} appears twice"))
        seen.add(reading.source)
        readings.append(reading)
    if findings:
        raise InputError(findings)
    return readings


def _reading(
    name: str, place: int, row: Mapping[str, str | None], findings: list[Finding]
) -> Reading | None:
    before = len(findings)
    numbers = {
        column: _number(name, place, column, row.get(column), findings)
        for column in ("value", "lower", "upper")
    }
    source = (row.get("source") or "").strip()
    if not source:
        findings.append(Finding(f"{name} row {place}, column source", "is empty"))
    for column in ("lower", "upper"):
        if numbers[column] is None and len(findings) == before:
            findings.append(Finding(f"{name} row {place}, column {column}", "is empty"))
    lower, upper = numbers["lower"], numbers["upper"]
    if lower is not None and upper is not None and lower > upper:
        where = f"{name} row {place}, column lower"
        findings.append(Finding(where, f"{lower:g} is above the upper bound {upper:g}"))
    if len(findings) > before or lower is None or upper is None:
        return None
    return Reading(source, numbers["value"], lower, upper)


def _number(
    name: str, place: int, column: str, text: str | None, findings: list[Finding]
) -> float | None:
    where = f"{name} row {place}, column {column}"
    stripped = (text or "").strip()
    if stripped.lower() in ("", "nan") and column in ("value",):
        return None
    try:
        value = float(stripped)
    except ValueError:
        findings.append(Finding(where, f"found {stripped!r}, expected a number"))
        return None
    if value != value or abs(value) == float("inf"):
        findings.append(Finding(where, f"found {stripped}, expected a finite number"))
        return None
    return value


def scale_of(readings: Sequence[Reading]) -> FixedPoint:
    """Return the finest power of ten, at most a million steps a unit, that fits 40 bits."""
    largest = max(max(abs(one.lower), abs(one.upper)) for one in readings)
    for power in range(6, -1, -1):
        if largest * 10**power < 2**39:
            return FixedPoint(10**power, 40)
    problem = f"bounds of up to {largest:g} do not fit 40 bits"
    raise InputError([Finding("readings", problem, "use larger units")])


# -- the round ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Committee:
    """The parties of one round in this process."""

    count: int
    degree: int
    session: bytes
    randomness: Randomness

    @property
    def names(self) -> tuple[NodeId, ...]:
        """Return the parties' names in order."""
        return tuple(NodeId(f"party-{index}") for index in range(1, self.count + 1))


def run_round(
    committee: Committee, readings: Sequence[Reading], question: Question, scale: FixedPoint
) -> list[ProcessResult]:
    """Let every source send its number and the parties answer, as machines in this process."""
    from nacl.public import PrivateKey

    draw = committee.randomness.octets
    boxes = [PrivateKey(draw(32)) for _ in committee.names]
    signers = {name: Signer(Secret(draw(32))) for name in committee.names}
    senders = {one.source: Signer(Secret(draw(32))) for one in readings}
    forms = {one.source: _form(one, scale) for one in readings}
    clients = {name: Enrolled(signer.verify_key, forms[name]) for name, signer in senders.items()}
    keys = {name: signer.verify_key for name, signer in signers.items()}
    machines: dict[NodeId, Machine] = {}
    for place, (name, box) in enumerate(zip(committee.names, boxes, strict=True), 1):
        secret = Secret(bytes(box))
        mailbox = Mailbox(
            place, committee.count, committee.degree, committee.session, clients, secret
        )
        machines[name] = Party(
            name,
            committee.names,
            committee.degree,
            program_of(question, mailbox),
            signer=signers[name],
            verify_keys=keys,
            randomness=committee.randomness,
            mailbox=mailbox,
            intake_ns=1,
            session=committee.session,
        )
    public = [bytes(box.public_key) for box in boxes]
    for one in readings:
        sent: Submission | None = None
        if one.value is not None:
            bits = number_bits(forms[one.source], round(one.value * scale.scale))
            sent = submit(
                committee.session,
                one.source,
                bits,
                degree=committee.degree,
                box_keys=public,
                signer=senders[one.source],
                randomness=committee.randomness,
            )
        machines[NodeId(f"source {one.source}")] = Sender(committee.names, sent)
    codecs = {name: Codec(Message) for name in machines}
    return run_machines(machines, codecs=codecs)


def _form(reading: Reading, scale: FixedPoint) -> Any:
    lower, upper = scale.integers([reading.lower, reading.upper])
    return number(lower, upper)


def aggregate_readings(
    readings: Sequence[Reading],
    question: Question,
    *,
    parties: int,
    degree: int,
    seed: int | None = None,
) -> dict[str, Any]:
    """Return the JSON object of ``veilgrid aggregate``.

    Raises
    ------
    RunAborted
        The parties ended without a result.
    """
    scale = scale_of(readings)
    lowest = min(scale.integers([one.lower for one in readings]))
    asked = Question(question.function, question.level, question.count_min, lowest)
    randomness: Randomness = SystemRandomness() if seed is None else SeededRandomness(seed)
    committee = Committee(parties, degree, b"aggregate" + randomness.octets(16), randomness)
    started = time.perf_counter()
    results = run_round(committee, readings, asked, scale)
    seconds = time.perf_counter() - started
    outcome = results[0].outcomes[0]
    if not hasattr(outcome, "result"):
        raise RunAborted(outcome.reason, ", ".join(outcome.culprits) or None)
    result: dict[str, Any] = outcome.result
    numbers = [int(text) for text in result["numbers"]]
    value, interval = answer_of(asked, numbers, len(result["clients"]), scale.scale)
    by_source = result["flags"]
    return {
        "function": asked.function,
        "value": value,
        "confidence_interval": interval,
        "accepted": len(result["clients"]),
        "rejected": [
            {"source": one.source, "reason": _REASONS[by_source[one.source]]}
            for one in readings
            if one.source in by_source
        ],
        "privacy": None,
        "parties": parties,
        "degree": degree,
        "seconds": seconds,
        "bytes": sum(one.octets_sent for one in results),
    }


@click.command()
@click.argument("readings", type=click.Path(path_type=Path))
@click.option("--function", "function", required=True, help=f"One of {', '.join(_OFFERED)}.")
@click.option("--level", type=float, default=0.5, show_default=True, help="Of the quantile.")
@click.option("--parties", type=int, default=3, show_default=True, help="3 to 7.")
@click.option("--degree", type=int, help="Parties that may collude. Default: the most possible.")
@click.option("--minimum", type=int, default=2, show_default=True, help="Valid inputs needed.")
@click.option("--epsilon", type=float, help="Differential privacy: not offered yet.")
@click.option("--delta", type=float, help="Differential privacy: not offered yet.")
@click.option("--rating", type=float, help="Transformer rating: not offered yet.")
@click.option("--seed", type=int, help="Replay this run exactly. Default: fresh randomness.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def aggregate(
    readings: Path,
    function: str,
    level: float,
    parties: int,
    degree: int | None,
    minimum: int,
    as_json: bool,
    seed: int | None,
    **later: float | None,
) -> None:
    """Compute one figure of many sources' READINGS without showing any of them.

    READINGS is a CSV file with the columns source, value, tier, lower, upper. Each source sends
    its number in shares to the parties, which check its bounds and open the figure only.
    """
    try:
        _refuse_later(function, later)
        chosen = policy.default_degree(parties, function) if degree is None else degree
        policy.check(parties, chosen, function, where=lambda name: f"--{name}")
        question = Question(function, level, minimum)
        report = aggregate_readings(
            read_readings(readings), question, parties=parties, degree=chosen, seed=seed
        )
    except VeilgridError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    if as_json:
        click.echo(json.dumps(report))
        return
    click.echo(f"{function:12} {report['value']:.6g}")
    if report["confidence_interval"]:
        low, high = report["confidence_interval"]
        click.echo(f"{'95 % within':12} {low:.6g} .. {high:.6g}")
    click.echo(f"{'accepted':12} {report['accepted']}")
    for one in report["rejected"]:
        click.echo(f"{'rejected':12} {one['source']}: {one['reason']}")
    click.echo(
        f"{'parties':12} {parties}, any {chosen} of them together learn nothing else; "
        f"{report['seconds']:.2f} s, {report['bytes'] / 1e6:.2f} MB"
    )


def _refuse_later(function: str, later: Mapping[str, float | None]) -> None:
    findings = []
    if function in _LATER:
        offered = ", ".join(_OFFERED)
        findings.append(
            Finding("--function", f"{function} is not offered yet", f"offered are {offered}")
        )
    findings += [
        Finding(f"--{name}", "is not offered yet", "leave it out")
        for name, value in later.items()
        if value is not None
    ]
    if findings:
        raise InputError(findings)


# -- the benchmark ------------------------------------------------------------------------------

_PEER: Final = """
import json, sys, time
import numpy as np
from mpyc.runtime import mpc
kind, count = sys.argv[1], int(sys.argv[2])
async def main():
    await mpc.start()
    generator = np.random.default_rng(1)
    bound = 2**39
    x = generator.integers(-bound, bound, count)
    y = generator.integers(-bound, bound, count)
    number = mpc.SecInt(96) if kind in ("multiplications", "weighted-sum") else mpc.SecInt(41)
    a = mpc.input(number.array(x), senders=0)
    b = mpc.input(number.array(y), senders=0)
    await mpc.gather(a); await mpc.gather(b)
    sent = mpc.parties[(mpc.pid + 1) % 3].protocol.nbytes_sent if len(mpc.parties) > 1 else 0
    started = time.perf_counter()
    if kind == "comparisons":
        result = await mpc.output(mpc.np_sum(a < b))
    elif kind == "multiplications":
        result = await mpc.output(mpc.np_sum(a * b))
    elif kind == "sort":
        result = await mpc.output(mpc.np_sort(a))
    else:
        weights = np.arange(count) % 1000 + 1
        result = await mpc.output(mpc.np_sum(a * weights))
    seconds = time.perf_counter() - started
    octets = sum(p.protocol.nbytes_sent for p in mpc.parties if p.pid != mpc.pid)
    await mpc.shutdown()
    if mpc.pid == 0:
        import resource
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print("RESULT", json.dumps({"seconds": seconds, "octets": octets, "peak": peak}))
mpc.run(main())
"""

_WORK: Final = (
    ("comparisons", 10_000),
    ("multiplications", 1_000_000),
    ("sort", 1_000),
    ("weighted-sum", 10_000),
)


def bench_mpc(
    *, with_peer: bool = True, committees: Sequence[int] = (3, 5, 7)
) -> list[dict[str, Any]]:
    """Return the rows of ``veilgrid bench mpc``.

    Parties are processes with mutual TLS on loopback; ours are secure against deviating parties,
    the peer (MPyC) is not and uses no TLS. Seconds of ours include the agreement on keys.
    """
    rows = []
    for n in committees:
        for kind, count in _WORK:
            ours = _ours(Workload(kind, count, (n - 1) // 2), n)
            peer = _peer(kind, count) if with_peer and n == 3 else None
            rows.append(
                {
                    "what": kind if n == 3 else f"{kind}, {n} parties",
                    "ours": ours["seconds"],
                    "peer": peer["seconds"] if peer else None,
                    "ratio": peer["seconds"] / ours["seconds"] if peer else None,
                    "unit": "s",
                    "count": count,
                    "parties": n,
                    "degree": (n - 1) // 2,
                    "ours_megabytes": ours["octets"] / 1e6,
                    "peer_megabytes": peer["octets"] / 1e6 if peer else None,
                    "ours_processor_seconds": ours["processor_seconds"],
                    "ours_peak_megabytes": ours["peak"] / 1e6,
                    "peer_peak_megabytes": peer["peak"] / 1e6 if peer else None,
                    "rounds": ours["rounds"],
                }
            )
    return rows


def bench_growth(
    counts: Sequence[int] = (100, 1_000, 10_000, 100_000), committees: Sequence[int] = (3, 5, 7)
) -> list[dict[str, Any]]:
    """Return how comparisons grow with their number and with the number of parties."""
    rows = []
    for n in committees:
        for count in counts:
            ours = _ours(Workload("comparisons", count, (n - 1) // 2), n)
            rows.append({"parties": n, "count": count, **ours})
    return rows


def _ours(workload: Workload, n: int) -> dict[str, float]:
    """Run a workload with ``n`` processes and check its result."""
    specs = [
        ProcessSpec(
            node=NodeId(f"party-{index}"),
            factory="veilgrid.mpc.workload:build_party",
            messages="veilgrid.mpc.message:Message",
            arguments=workload,
        )
        for index in range(1, n + 1)
    ]
    results = run_processes(specs, timeout_s=600, start_timeout_s=120)
    right = expected(workload)
    for result in results:
        outcome = result.outcomes[0] if result.outcomes else {"reason": result.stderr}
        if outcome.get("result") != right:
            reason = outcome.get("reason", "a result differs from the plain one")
            raise RunAborted(f"{workload.kind} with {n} parties: {reason}")
    return {
        "seconds": max(result.seconds for result in results),
        "octets": max(result.octets_sent for result in results),
        "peak": max(result.peak_memory_octets for result in results),
        "processor_seconds": max(result.processor_seconds for result in results),
        "rounds": results[0].outcomes[0]["round_count"],
    }


def _peer(kind: str, count: int) -> dict[str, float] | None:
    """Run the same work with MPyC in three processes; None if it is not installed or fails."""
    with tempfile.TemporaryDirectory(prefix="veilgrid-peer-") as folder:
        script = Path(folder) / "peer.py"
        script.write_text(_PEER, encoding="utf-8")
        done = subprocess.run(  # noqa: S603 - our own interpreter, our own script
            [sys.executable, str(script), kind, str(count), "-M3", "--no-log"],
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
    for line in done.stdout.splitlines():
        if line.startswith("RESULT "):
            found: dict[str, float] = json.loads(line.removeprefix("RESULT "))
            return found
    return None
