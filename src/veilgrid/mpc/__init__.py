"""Secure computation between 3 to 7 parties, any minority of them malicious [mpc 0]."""

from veilgrid.mpc._round import Steps, together
from veilgrid.mpc._shares import Shares, concatenate, public_matrix
from veilgrid.mpc.client import Enrolled, Mailbox, read_output, submit
from veilgrid.mpc.engine import Engine
from veilgrid.mpc.field import FixedPoint
from veilgrid.mpc.form import Form
from veilgrid.mpc.intake import Batch, intake
from veilgrid.mpc.message import Aborted, Finished, Message, Output, Submission
from veilgrid.mpc.order import (
    Mpc,
    by_rank,
    clip,
    equal,
    less,
    minimum_maximum,
    quantile_of_counts,
    select,
    sort,
)
from veilgrid.mpc.party import Party, Program
from veilgrid.mpc.plain import Plain
from veilgrid.mpc.policy import Policy

__all__ = [
    "Aborted",
    "Batch",
    "Engine",
    "Enrolled",
    "Finished",
    "FixedPoint",
    "Form",
    "Mailbox",
    "Message",
    "Mpc",
    "Output",
    "Party",
    "Plain",
    "Policy",
    "Program",
    "Shares",
    "Steps",
    "Submission",
    "by_rank",
    "clip",
    "concatenate",
    "equal",
    "intake",
    "less",
    "minimum_maximum",
    "public_matrix",
    "quantile_of_counts",
    "read_output",
    "select",
    "sort",
    "submit",
    "together",
]
