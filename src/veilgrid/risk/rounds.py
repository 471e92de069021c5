"""A round of aggregation as a committee runs it: told, computed, read [risk 4]."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from veilgrid.errors import invariant
from veilgrid.mpc import Engine, Enrolled, Mailbox, Program, Steps
from veilgrid.mpc.bulk import BulkMailbox, bulk_intake
from veilgrid.risk.aggregate import Plan, Question, Source, answer_steps, plan_of
from veilgrid.risk.trust import TrustSettings
from veilgrid.secret import Secret


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """All that the parties have to know of a round; from it everybody makes the same plan.

    Attributes
    ----------
    reliabilities : (source,)
        From past rounds; empty: those that the sources bring.
    """

    question: Question
    sources: tuple[Source, ...]
    settings: TrustSettings = field(default_factory=TrustSettings)
    reliabilities: tuple[float, ...] = ()

    def plan(self) -> Plan:
        """Return the plan, the same wherever it is made."""
        return plan_of(self.question, self.sources, self.settings, self.reliabilities or None)


def mailbox_of(round_: Round) -> Callable[..., Mailbox]:
    """Return what makes a party's mailbox for this round."""
    layout = round_.plan().layout

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


def program_of(round_: Round, mailbox: Mailbox) -> Program:
    """Return the computation of one party: take inputs, check them, answer."""
    plan = round_.plan()

    def program(mpc: Engine) -> Steps[dict[str, Any]]:
        invariant(isinstance(mailbox, BulkMailbox), "the mailbox is one for many clients")
        batch = yield from bulk_intake(mpc, mailbox, plan.question.count_min)  # type: ignore[arg-type]
        return (yield from answer_steps(mpc, batch, plan))

    return program
