"""A private figure of very many devices of one kind [privacy 2.2].

The same questions and noise as in ``risk/privacy_round.py``, with the intake for many clients.
Parties that add noise to a sum are clients with a reading of zero, as devices then have a noise of
zero. Noise of parties on histograms is the exception: 64 numbers of zero from each device would
cost more than they save, so that stays there.
"""

from collections.abc import Callable, Mapping

import numpy as np

from veilgrid.errors import invariant
from veilgrid.mpc import Engine, Enrolled, Mailbox, Mpc, Program, Shares, Steps
from veilgrid.mpc.bulk import BulkBatch, BulkMailbox, bulk_intake
from veilgrid.mpc.layout import Integers, Layout, Number
from veilgrid.mpc.noise import coarsened, discrete_gaussian
from veilgrid.risk.privacy_round import (
    BINS,
    NOISE,
    PrivateQuestion,
    PrivateRound,
    check_presence,
    local_bounds,
    rounded,
    shares_of_noise,
)
from veilgrid.risk.robust import encode_values, histogram_layout, number_layout
from veilgrid.secret import Randomness, Secret


def is_bulk(question: PrivateQuestion) -> bool:
    """Return whether the intake for many clients serves this question."""
    return question.plan.mode != "parties" or not question.edges


def clients_of(question: PrivateQuestion) -> list[str]:
    """Return who sends something: devices, and parties that add noise."""
    return [*(one.name for one in question.sources), *_parties(question)]


def _parties(question: PrivateQuestion) -> list[str]:
    if question.plan.mode != "parties":
        return []
    return [f"{NOISE}{party}" for party in range(1, question.who.parties + 1)]


def _bounds(question: PrivateQuestion) -> tuple[Integers, Integers]:
    lower = np.array([one.lower for one in question.sources], np.int64)
    upper = np.array([one.upper for one in question.sources], np.int64)
    return lower, upper


def layout_of(question: PrivateQuestion) -> Layout:
    """Return what every device may send; its bounds are checked on shares."""
    lower, upper = _bounds(question)
    plan = question.plan
    if question.edges:
        return histogram_layout(lower, upper, np.array(question.edges, np.int64))
    if plan.mode == "local":
        both = np.array([local_bounds(plan, one) for one in question.sources], np.int64)
        return number_layout(both[:, 0], both[:, 1])
    count = len(_parties(question))
    none, bound = np.zeros(count, np.int64), np.zeros(len(lower) + count, np.int64)
    if count:
        bound[len(lower) :] = plan.share_bound
        values = Number("value", np.concatenate([lower, none]), np.concatenate([upper, none]))
        return Layout((values, Number("noise", -bound, bound)))
    parts = [Number("value", lower, upper)]
    if plan.mode == "devices":
        parts.append(Number("noise", -plan.share_bound, plan.share_bound))
    return Layout(tuple(parts))


def inputs_of(
    question: PrivateQuestion, values: Mapping[str, int], randomness: Randomness
) -> dict[str, list[int]]:
    """Return what devices send, as their elements; each draws its own noise.

    Parameters
    ----------
    question
        What is asked.
    values : by device, steps
        Readings; a device that is missing sends nothing, one out of its bounds will be found out.
    randomness
        Where noise is drawn from.
    """
    layout, plan = layout_of(question), question.plan
    lower, upper = _bounds(question)
    listed = np.array([values.get(one.name, one.lower) for one in question.sources], np.int64)
    if plan.mode == "parties":
        return _with_parties(question, values, listed, randomness)
    noise = np.array(shares_of_noise(plan, len(listed), randomness), np.int64)
    if question.edges:
        rows = encode_values(layout, listed, np.array(question.edges, np.int64))
    elif plan.mode == "local":
        # A device cannot be caught lying here, so an honest one keeps its own bounds.
        within = np.clip(listed, lower, upper).tolist()
        coarse = np.array([rounded(plan, int(value)) for value in within], np.int64)
        rows = layout.encode({"value": coarse + noise})
    elif plan.mode == "devices":
        rows = layout.encode({"value": listed, "noise": noise})
    else:
        rows = layout.encode({"value": listed})
    return {
        one.name: row.tolist()
        for one, row in zip(question.sources, rows, strict=True)
        if one.name in values
    }


def _with_parties(
    question: PrivateQuestion, values: Mapping[str, int], listed: Integers, randomness: Randomness
) -> dict[str, list[int]]:
    """Return what devices send, and what each party sends as its noise."""
    parties = _parties(question)
    drawn = np.array(shares_of_noise(question.plan, len(parties), randomness), np.int64)
    readings = np.concatenate([listed, np.zeros(len(parties), np.int64)])
    noise = np.concatenate([np.zeros(len(listed), np.int64), drawn])
    rows = layout_of(question).encode({"value": readings, "noise": noise})
    named = zip(clients_of(question), rows, strict=True)
    return {name: row.tolist() for name, row in named if name in values or name in parties}


def mailbox_of(round_: PrivateRound) -> Callable[..., Mailbox]:
    """Return what makes a party's mailbox for this round."""
    layout = layout_of(round_.question)

    def made(
        party: int,
        n: int,
        degree: int,
        session: bytes,
        clients: Mapping[str, Enrolled],
        box_key: Secret[bytes],
    ) -> Mailbox:
        return BulkMailbox(party, n, degree, session, clients, box_key, layout)

    return made


def program_of(round_: PrivateRound, mailbox: Mailbox) -> Program:
    """Return a party's program; its result is that of ``privacy_round.program_of``."""
    question, count_min = round_.question, round_.count_min

    def program(mpc: Engine) -> Steps[dict[str, object]]:
        invariant(isinstance(mailbox, BulkMailbox), "the mailbox is one for many clients")
        batch = yield from bulk_intake(mpc, mailbox, count_min)  # type: ignore[arg-type]
        noisy = set(_parties(question))
        silent = [name for name in batch.flags if name in noisy]
        devices = [name for name in batch.clients if name not in noisy]
        check_presence(question, len(devices), len(silent), count_min)
        opened = yield from released(mpc, question, batch)
        return {
            "numbers": [str(value) for value in opened],
            "clients": devices,
            "flags": {name: why for name, why in batch.flags.items() if name not in noisy},
            "replaced": [],
            "silent": [name.removeprefix(NOISE) for name in silent],
        }

    return program


def released(mpc: Mpc, question: PrivateQuestion, batch: BulkBatch) -> Steps[list[int]]:
    """Open the figure with its noise, in coarse steps."""
    plan, weights = question.plan, question.weights
    factors = np.array([weights.get(name, 0) for name in batch.names], np.int64)
    kept = np.where(batch.is_counted, factors, 0)
    if plan.mode == "local":
        return (yield from mpc.open(batch.number("value").weighted_sum(kept)))
    figure: Shares
    if question.edges:
        figure = batch.column_sums("bin", kept)
    else:
        figure = batch.number("value").weighted_sum(kept)
    figure = yield from coarsened(mpc, figure, plan.factor, plan.shift)
    if plan.mode in ("devices", "parties"):
        noise = batch.number("noise").weighted_sum(batch.is_counted.astype(np.int64))
    else:
        width = BINS if question.edges else 1
        noise = yield from discrete_gaussian(mpc, width, plan.charge.sigma)
    return (yield from mpc.open(figure + noise))
