"""Which computation a task of a sealed day is, and on what [sealed 4.3]."""

from collections.abc import Mapping

from veilgrid.mpc import Engine, Enrolled, Mailbox, Program, Shares
from veilgrid.roles.sealed.bid import Shape
from veilgrid.roles.sealed.challenge import Challenged, challenge_program
from veilgrid.roles.sealed.course import Course
from veilgrid.roles.sealed.heard import BID, PAYER, Pads, client_of, fallbacks, vector_form
from veilgrid.roles.sealed.kinds import ANSWER, BIDS, CHALLENGE, PULL, REGRET, SURPLUS, WISH
from veilgrid.roles.sealed.message import Agreement
from veilgrid.roles.sealed.program import (
    Priced,
    Tolerances,
    answer_program,
    bids_program,
    pull_program,
    regret_program,
    wish_program,
)
from veilgrid.roles.sealed.relief import Doubted, relief_program
from veilgrid.roles.sealed.settle import Said, certificate_program


def clients_of(
    course: Course, agreement: Agreement, shapes: tuple[Shape, ...]
) -> dict[str, Enrolled]:
    """Return who sends something in the present task, and of which form."""
    task = course.task
    label = BID if task.kind == BIDS else f"{task.kind} {task.number}"
    clients = {
        client_of(bus, label): Enrolled(agreement.site_keys[bus], vector_form(length))
        for bus, length in course.lengths(shapes).items()
    }
    if task.kind == BIDS and agreement.payer is not None:
        clients[client_of(PAYER, BID)] = Enrolled(agreement.payer_key, vector_form(1))
    return clients


def program_of(
    course: Course,
    mailboxes: Mapping[int, Mailbox],
    shapes: tuple[Shape, ...],
    limits: Tolerances,
    session: bytes,
) -> Program:
    """Return what the present task computes.

    It stays the same when the day has gone on: parties run it again to find out who lied.

    Parameters
    ----------
    course
        Where the day stands.
    mailboxes
        By task, what sites sent or will send.
    shapes
        Of all sites' problems, by bus.
    limits
        When the coordination may stop.
    session
        Of the task.
    """
    task = course.task
    mailbox = mailboxes[task.number]
    if task.kind == BIDS:
        return lambda mpc: bids_program(mpc, mailbox, shapes)
    bids, register = mailboxes[course.bid_task], course.register
    taking, absent = list(course.still), frozenset(course.absent)
    pads = Pads(bids, absent, session)

    def still(mpc: Engine) -> dict[int, Shares]:
        return fallbacks(mpc, register, bids, taking, absent)

    if task.kind == WISH:
        looks, binding = course.looks, course.binding
        flags = {"is_watched": course.is_watched, "is_balanced": course.is_balanced}
        return lambda mpc: wish_program(
            mpc, register, mailbox, still(mpc), binding, pads, looks=looks, **flags
        )
    if task.kind == REGRET:
        return lambda mpc: regret_program(mpc, mailbox)
    if task.kind == CHALLENGE:
        asked = _challenged(course, mailboxes, limits)
        return lambda mpc: challenge_program(mpc, shapes, bids, mailbox, asked, still(mpc))
    priced = _priced(course, mailboxes, course.priced_by)
    if task.kind == ANSWER:
        return lambda mpc: answer_program(mpc, register, mailbox, priced, still(mpc), limits)
    if task.kind == PULL:
        return lambda mpc: pull_program(mpc, priced, still(mpc), pads)
    if task.kind == SURPLUS:
        doubted = Doubted(priced, absent, _gap_allowed(course, limits))
        return lambda mpc: relief_program(mpc, shapes, bids, mailbox, doubted, still(mpc))
    answers, regrets = mailboxes.get(course.answer_task), mailboxes.get(course.regret_task)
    said = Said(answers, regrets, absent, _gap_allowed(course, limits), course.may_narrow)
    return lambda mpc: certificate_program(
        mpc, register, shapes, bids, mailbox, priced, still(mpc), said, pads
    )


def _priced(course: Course, mailboxes: Mapping[int, Mailbox], step: int) -> Priced:
    """Return the network step of an iteration."""
    wishes = mailboxes[course.wish_tasks[step]]
    return Priced(course.registers[step], wishes, course.bindings[step])


def _challenged(course: Course, mailboxes: Mapping[int, Mailbox], limits: Tolerances) -> Challenged:
    """Return the last wishes, and the network step that they answer."""
    step = course.task.iteration - 1
    return Challenged(
        _priced(course, mailboxes, step),
        mailboxes[course.wish_tasks[step + 1]],
        course.settings.relaxation,
        _gap_allowed(course, limits),
    )


def _gap_allowed(course: Course, limits: Tolerances) -> float:
    """Return how large the gap may be, in price units."""
    return limits.allowed(course.history[-1].cost)
