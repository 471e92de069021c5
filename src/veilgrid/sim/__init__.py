"""Run machines in a deterministic simulation: one queue, one seed, any weather [node 8]."""

from veilgrid.sim.cast import (
    Replaying,
    Rushing,
    Silent,
    Tampering,
    Twins,
    TwoFaced,
    tampered,
)
from veilgrid.sim.checker import (
    Agreement,
    Checker,
    Durability,
    NoSecretOnWire,
    Violation,
    canary_forms,
)
from veilgrid.sim.sweep import Report, replay_command, sweep
from veilgrid.sim.world import CALM, Weather, World

__all__ = [
    "CALM",
    "Agreement",
    "Checker",
    "Durability",
    "NoSecretOnWire",
    "Replaying",
    "Report",
    "Rushing",
    "Silent",
    "Tampering",
    "Twins",
    "TwoFaced",
    "Violation",
    "Weather",
    "World",
    "canary_forms",
    "replay_command",
    "sweep",
    "tampered",
]
