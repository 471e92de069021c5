"""A run in plain words: what happened, what it is worth, what was checked, who saw what."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from veilgrid.report.tables import pays_more

SCHEMES = {
    "alone": "every site on its own contract at the substation's tariff",
    "central": "one trusted operator plans for everybody",
    "ledger": "the plain problem on a ledger, solved by workers and verified by validators",
    "neighbour": "sites plan for themselves and agree with their neighbours",
    "neighbour-ledger": "agreement between neighbours, recorded in plain text on a ledger",
    "exchange": "sites plan for themselves and agree on prices through a coordinator",
    "masked": "masked subproblems, solved by third-party workers and verified by validators",
    "sealed": "agreement on prices computed by a committee on secret shares",
}
"""How each scheme plans."""

EXPOSED = {
    "alone": "Nothing: sites tell nobody their data or plans.",
    "central": (
        "The operator sees everything: every device, its limits and costs, every load, forecast "
        "and schedule."
    ),
    "ledger": (
        "Everybody who reads the ledger sees everything: devices, costs, loads, forecasts and "
        "schedules, in plain text."
    ),
    "neighbour": (
        "A parent sees, in every iteration, sums over what hangs below it: net demand, wishes, "
        "costs and payments. Of a site at the end of a feeder these are the site's own, and its "
        "answers to many prices tell much about its devices. Children see their parent's voltage; "
        "everybody sees all prices and which limits bind. Device data and set-points are not sent."
    ),
    "neighbour-ledger": (
        "Everybody who reads the ledger sees all coupling variables and subproblems in plain text."
    ),
    "exchange": (
        "The coordinator sees each site's net demand, active and reactive, in every interval and "
        "iteration, and what its devices cost in all. Device data and set-points stay at the site, "
        "but what these let the coordinator infer about them is not hidden: no cryptography is at "
        "work."
    ),
    "masked": (
        "Workers see masked subproblems. Masking is not encryption: a worker can recover "
        "schedules, device sizes and forecasts from them; `veilgrid audit` shows how exactly."
    ),
    "sealed": (
        "A site sees its own prices and payment. Everybody sees, iteration by iteration, which "
        "limits bind, which way the exchange with the grid above goes, and what all together cost; "
        "where no limit binds, the tariff of that direction is everybody's price. Of a site's "
        "loads, devices, costs and schedule the committee sees nothing as long as no more of its "
        "parties collude than its corruption bound allows; the payer sees payments. The pictures "
        "of plans in this report could be drawn because one program played all sites."
    ),
}
"""What others get to see, by scheme."""

SEEN_BY = {
    "alone": "nobody",
    "central": "operator",
    "ledger": "everybody",
    "neighbour": "neighbours",
    "neighbour-ledger": "everybody",
    "exchange": "coordinator",
    "masked": "workers",
    "sealed": "nobody",
}
"""Who sees data of a site; :data:`EXPOSED` says which."""

STATUSES = {
    "converged": "converged",
    "iteration_limit": "stopped at the iteration limit",
    "infeasible": "found no plan that keeps all limits",
    "aborted": "was aborted",
}


SETTLEMENT_LINES = {
    "substation": "Exchange with the grid above",
    "rent": "Congestion rent: what binding limits collect",
    "congestion_rent": "Congestion rent: what binding limits collect",
    "rent_expected": "Congestion rent, recomputed from the binding limits",
    "rounding": "Left over by rounding",
}
"""Lines of a settlement besides the sites."""


GAP_NOISE = 1e-5
"""A cost below the bound by less than this share is rounding."""


@dataclass(frozen=True, kw_only=True)
class Fact:
    """A figure of the header. ``verdict`` is ``good``, ``bad`` or empty."""

    label: str
    value: str
    detail: str = ""
    verdict: str = ""


def number(value: object) -> float | None:
    """Read a number of a summary; ``None`` if it is absent or not finite."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def money(value: float | None, currency: str) -> str:
    """Write an amount with two decimals."""
    return "unknown" if value is None else f"{value + 0.0:,.2f} {currency}"


def cost_alone(summary: Mapping[str, Any]) -> float | None:
    """Sum what all sites would pay alone; ``None`` without a settlement."""
    sites = part(summary, "settlement").get("sites") or []
    return math.fsum(float(site["cost_alone"]) for site in sites) if sites else None


def part(summary: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return an object inside a summary; empty if it is absent or null."""
    value = summary.get(key)
    return value if isinstance(value, Mapping) else {}


def saving_percent(summary: Mapping[str, Any]) -> float | None:
    """Compute the saving against alone in percent of the cost alone."""
    alone, cost = cost_alone(summary), number(summary.get("cost"))
    if alone is None or cost is None or alone == 0.0:
        return None
    return 100.0 * (alone - cost) / abs(alone)


def headline(summary: Mapping[str, Any], currency: str, period: str = "day") -> str:
    """Say in one sentence how the run ended; ``period`` names what was planned."""
    status = str(summary.get("status"))
    scheme = summary.get("scheme")
    cost, percent = number(summary.get("cost")), saving_percent(summary)
    ending = STATUSES.get(status, status)
    if status in ("infeasible", "aborted") or cost is None:
        return f"The run {ending}: there is no plan."
    verb = "costs" if cost >= 0.0 else "earns"
    text = f"The {scheme} scheme {ending}. The {period} {verb} {money(abs(cost), currency)}"
    if percent is None or scheme == "alone":
        return text + "."
    word = "less" if (percent >= 0.0) == (cost >= 0.0) else "more"
    return f"{text}, {abs(percent):,.2f}\u00a0% {word} than everybody alone."


def facts(summary: Mapping[str, Any], currency: str, period: str = "day") -> list[Fact]:
    """List the figures of the header."""
    status = str(summary.get("status"))
    cost, alone = number(summary.get("cost")), cost_alone(summary)
    percent = saving_percent(summary)
    found = [
        Fact(
            label=f"{'Cost' if cost is None or cost >= 0.0 else 'Income'} of the {period}",
            value=money(abs(cost), currency) if cost is not None else "no plan",
            detail="devices and exchange with the grid above" if cost is not None else "",
            verdict="" if cost is not None else "bad",
        )
    ]
    is_compared = summary.get("scheme") != "alone"
    if is_compared and cost is not None and alone is not None and percent is not None:
        found.append(
            Fact(
                label="Saving against alone",
                value=f"{percent:,.2f}\u00a0%",
                detail=f"{money(alone - cost, currency)}; alone "
                + ("costs " if alone >= 0.0 else "earns ")
                + money(abs(alone), currency),
                verdict="good" if percent >= 0.0 else "bad",
            )
        )
    iterations = number(summary.get("iterations"))
    seconds = number(summary.get("seconds"))
    if iterations is not None:
        found.append(
            Fact(
                label="Iterations",
                value=f"{iterations:,.0f}",
                detail=STATUSES.get(status, status),
                verdict="good" if status == "converged" else "bad",
            )
        )
    if seconds is not None:
        found.append(Fact(label="Time", value=_seconds(seconds), detail=_traffic(summary)))
    return found


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds < 100.0 else f"{seconds / 60.0:.1f} min"


def _traffic(summary: Mapping[str, Any]) -> str:
    messages, sent = number(summary.get("messages")), number(summary.get("bytes"))
    if messages is None or sent is None:
        return ""
    if messages == 0.0:
        return "no messages"
    return f"{messages:,.0f} messages, {size(sent)}"


def size(amount: float) -> str:
    """Write a number of bytes."""
    for unit in ("bytes", "kB", "MB"):
        if amount < 1000.0:
            return f"{amount:,.0f} {unit}" if unit == "bytes" else f"{amount:,.1f} {unit}"
        amount /= 1000.0
    return f"{amount:,.1f} GB"


def certificate(summary: Mapping[str, Any]) -> Fact | None:
    """Say what the certificate proves."""
    entry = part(summary, "certificate")
    if not entry:
        return None
    primal, gap = number(entry.get("primal")), number(entry.get("gap"))
    told = []
    if gap is not None:
        share = f"{max(100.0 * abs(gap), 1e-4):.2g}\u00a0%"
        side = f"within {share} of" if gap > -GAP_NOISE else f"{share} below"
        told.append(
            f"The plan's cost is {side} a bound that no feasible plan can undercut, recomputed "
            "from the data, whatever happened on the way"
        )
    if primal is not None:
        told.append(f"limits and device constraints are met within {primal:.1e} per unit")
    is_accepted = entry.get("accepted") is True
    return Fact(
        label="Certificate",
        value="accepted" if is_accepted else "not accepted",
        detail="; ".join(told) + ("." if told else ""),
        verdict="good" if is_accepted else "bad",
    )


def ac_check(summary: Mapping[str, Any], low: float | None, high: float | None) -> Fact | None:
    """Say whether the plan stands in an AC power flow."""
    entry = part(summary, "ac_check")
    if not entry:
        return None
    least, most = number(entry.get("vm_min_pu")), number(entry.get("vm_max_pu"))
    heaviest = number(entry.get("loading_max"))
    told = []
    if least is not None and most is not None:
        limits = [f"{side:g}" if side is not None else "none" for side in (low, high)]
        bounds = f" (limits {limits[0]} to {limits[1]})" if (low, high) != (None, None) else ""
        told.append(f"voltages {least:.4f} to {most:.4f} pu{bounds}")
    if heaviest is not None and heaviest > 0.0:
        told.append(f"highest branch loading {100.0 * heaviest:.1f} %")
    passed = entry.get("passed") is True
    detail = "A full AC power flow of the plan"
    if told:
        detail += ": " + ", ".join(told)
    if not passed:
        detail += ". The plan must not be released as it stands"
    return Fact(
        label="AC power flow",
        value="passed" if passed else "not passed",
        detail=detail + ".",
        verdict="good" if passed else "bad",
    )


def settlement_checks(
    summary: Mapping[str, Any], settlement: pd.DataFrame, currency: str
) -> list[Fact]:
    """List the checks without which no settlement is shown."""
    entry = part(summary, "settlement")
    total = number(entry.get("sum"))
    checks = []
    if total is not None:
        is_zero = abs(total) < 0.005
        checks.append(
            Fact(
                label="Payments sum to zero",
                value="yes" if is_zero else f"no, {money(total, currency)} remain",
                detail="what sites pay is what others and the substation receive",
                verdict="good" if is_zero else "bad",
            )
        )
    if "individually_rational" in entry:
        holds = entry["individually_rational"] is True
        worse = int(pays_more(settlement).sum())
        checks.append(
            Fact(
                label="No site is worse off than alone",
                value="yes" if holds else f"no, {worse} pay more",
                detail="" if holds else "alone, nobody keeps the limits of the network",
                verdict="good" if holds else "bad",
            )
        )
    for key, value in entry.items():
        amount = number(value)
        if amount is not None and key != "sum":
            label = SETTLEMENT_LINES.get(key, key.replace("_", " ").capitalize())
            checks.append(Fact(label=label, value=money(amount, currency)))
    return checks


def obstacles(summary: Mapping[str, Any]) -> list[str]:
    """List what the summary finds wrong: why there is no plan, or what it exceeds."""
    told: list[str] = []
    found = [summary.get(key) for key in ("findings", "explanation", "violations")]
    for entries in (*found, part(summary, "ac_check").get("findings")):
        if not entries:
            continue
        for entry in entries if isinstance(entries, list) else [entries]:
            if isinstance(entry, Mapping):
                told.append(", ".join(f"{name} {value}" for name, value in entry.items()))
            else:
                told.append(str(entry))
    return told
