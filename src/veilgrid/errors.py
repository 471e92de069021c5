"""Four kinds of failure, four mechanisms.

1. *Outcome* (infeasible, not converged, rejected): a value, never an exception.
2. *Fault of a peer* (late, forged, dishonest): ignored, or an accusation that is decided on.
3. *Bug*: :func:`invariant` raises :class:`InvariantError`; the process ends with exit code 70.
4. *Environment and input*: the tree below.

    VeilgridError                exit code
    |- InputError(findings)      2   every broken rule at once
    |  |- ConfigError
    |  `- ScenarioError
    |- SetupError                3   solver missing, port taken, key unreadable
    |- TransportError            4
    |  |- Unreachable
    |  |- HandshakeFailed
    |  `- FrameTooLarge
    |- JournalCorrupt            4
    |- SolverFailed              1   a back-end broke
    `- RunAborted                5   a protocol ended without result
"""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """One broken rule: where it stands, what was found, what to do about it.

    Attributes
    ----------
    where
        File, then row and column where they exist, e.g. ``devices.csv row 3, column bus``.
    problem
        What was found and what was expected.
    advice
        What to do next; empty if the problem says it.
    """

    where: str
    problem: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.problem}" + (f" ({self.advice})" if self.advice else "")


class VeilgridError(Exception):
    """Anything a caller of veilgrid may want to catch."""

    exit_code = 1


class InputError(VeilgridError):
    """Input breaks rules; all of them are listed, not only the first."""

    exit_code = 2

    def __init__(self, findings: Iterable[Finding]) -> None:
        self.findings = tuple(findings)
        invariant(len(self.findings) > 0, "an input error names at least one finding")
        count = len(self.findings)
        head = f"{count} problem{'s' if count > 1 else ''} in the input"
        super().__init__("\n".join([head, *(f"  - {finding}" for finding in self.findings)]))


class ConfigError(InputError):
    """A settings file breaks rules."""


class ScenarioError(InputError):
    """A scenario folder breaks rules."""


class SetupError(VeilgridError):
    """The machine lacks something: a solver, a port, a readable key."""

    exit_code = 3


class TransportError(VeilgridError):
    """A connection could not be made or kept."""

    exit_code = 4


class Unreachable(TransportError):
    """A peer does not answer."""


class HandshakeFailed(TransportError):
    """A peer could not prove who it is."""


class FrameTooLarge(TransportError):
    """A frame exceeds the agreed limit."""


class JournalCorrupt(VeilgridError):
    """A journal record does not match its checksum."""

    exit_code = 4

    def __init__(self, path: str, offset: int, expected: str, found: str) -> None:
        self.path, self.offset = path, offset
        super().__init__(
            f"{path}: record at byte {offset} has checksum {found}, expected {expected}; "
            "restore the file from a copy or let the process fetch its state from its peers"
        )


class SolverFailed(VeilgridError):
    """A numerical back-end ended with neither a solution nor an outcome."""

    def __init__(self, backend: str, status: str) -> None:
        self.backend, self.status = backend, status
        super().__init__(f"solver {backend} ended with '{status}'; try another back-end")


class RunAborted(VeilgridError):
    """A protocol ended without a result."""

    exit_code = 5

    def __init__(self, reason: str, culprit: str | None = None) -> None:
        self.reason, self.culprit = reason, culprit
        super().__init__(reason + (f"; culprit: {culprit}" if culprit else "; no culprit known"))


class InvariantError(AssertionError):
    """A bug in veilgrid: something that must hold does not."""


def invariant(condition: bool, claim: str) -> None:
    """Raise :class:`InvariantError` unless ``condition``; survives ``python -O``.

    ``claim`` states positively what must hold.
    """
    if not condition:
        raise InvariantError(f"violated: {claim}")
