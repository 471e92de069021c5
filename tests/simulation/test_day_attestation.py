"""Sites, workers and validators with forged, old, foreign or no evidence stay outside a day."""

import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from small_day import small_day

from veilgrid.cli._rehearsed import rehearsed
from veilgrid.errors import ConfigError
from veilgrid.ledger.operation import Admit, decode_operation
from veilgrid.ledger.service import Record
from veilgrid.machine import NodeId
from veilgrid.node.attest.admission import PolicyAssessor, quote_by
from veilgrid.node.attest.policy import Policy, Program, Revoked
from veilgrid.node.attest.software import SoftwareProvider
from veilgrid.roles.ledger_admission import Assessor, Quote
from veilgrid.secret import Secret, SeededRandomness
from veilgrid.sim import day as simulated
from veilgrid.sim.day_faults import (
    EVIDENCE,
    Crash,
    Faults,
    Liar,
    WeatherFaults,
    WrongEvidence,
    check_faults,
)

DAY = small_day()
VALIDATORS = [f"validator-{index}" for index in range(1, 5)]
BUSES = [str(site.name) for site in DAY.sites]
NOW_S = 1_800_000_000.0
GENUINE = SoftwareProvider(Secret(bytes(range(32))), bytes(48))
POLICY = Policy(
    accept_software=True,
    software_roots=(GENUINE.root_key.hex(),),
    program=(Program(kind="software", measurement=GENUINE.measurement.hex()),),
)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("veilgrid.node.attest")
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(logging.NOTSET)


LIES = {
    "forged": "is not in the policy",
    "expired": "1000 s old",
    "replayed": "another nonce",
    "another-program": "is not in the policy",
    "foreign": "another key",
    "none": "is no evidence",
}


class Shows:
    """What each process shows and by what each validator judges."""

    others: ClassVar[dict[str, Quote]] = {}

    def __init__(self, lies: dict[str, str], policies: dict[str, Policy] | None = None) -> None:
        self.assessors: dict[str, PolicyAssessor] = {}
        self._shown = rehearsed(lies, tuple(VALIDATORS), 1)
        self._policies = policies or {}

    def __call__(self, name: str) -> tuple[Quote, Assessor | None]:
        quote, _ = self._shown(name)
        quote = self.others.get(name, quote)
        if not name.startswith("validator"):
            return quote, None
        rules = self._policies.get(name, POLICY)
        randomness = SeededRandomness(sum(name.encode()))
        self.assessors[name] = PolicyAssessor(rules, randomness, lambda: NOW_S)
        return quote, self.assessors[name]


class Run:
    """A simulated day with the ballots that each validator holds at its end."""

    def __init__(
        self,
        lies: dict[str, str],
        faults: Faults | None = None,
        seed: int = 1,
        policies: dict[str, Policy] | None = None,
    ) -> None:
        worlds: list[Any] = []

        class Kept(simulated.World):
            def __init__(self, *arguments: Any, **more: Any) -> None:
                super().__init__(*arguments, **more)
                worlds.append(self)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(simulated, "World", Kept)
            own = faults or Faults(site_processes=len(BUSES))
            self.found = simulated.simulate_day(DAY, seed, own, attest=Shows(lies, policies))
        (self._world,) = worlds

    def ballots(self, validator: str) -> dict[tuple[str, str], Admit]:
        """By who said it and of whom, from one validator's records."""
        machine: Any = self._world.machine(NodeId(validator))
        said = {}
        for octets in machine.replica.service.records:
            record = msgspec.msgpack.decode(octets, type=Record)
            operation = decode_operation(record.operation)
            if isinstance(operation, Admit):
                said[record.client, operation.who] = operation
        return said


@pytest.mark.parametrize(
    "lies",
    [
        {"site-2": "forged", "site-4": "replayed"},
        {"site-3": "expired", "site-4": "another-program"},
        {"site-3": "foreign", "worker-1": "none"},
    ],
    ids=lambda lies: " and ".join(lies.values()),
)
def test_who_shows_wrong_evidence_is_refused_by_every_honest_validator(
    lies: dict[str, str],
) -> None:
    """A stolen edge key is worth nothing without the device that it was made in."""
    run = Run(lies)
    assert (run.found.outcome, run.found.violations) == ("converged", ())
    assert run.found.result is not None
    refused = tuple(BUSES[int(node[-1]) - 1] for node in lies if node.startswith("site"))
    assert run.found.result.excluded == refused
    assert sum(amount for _, amount in run.found.result.payments) == 0
    ballots = run.ballots("validator-2")
    for node, kind in lies.items():
        who = node if node.startswith("worker") else f"site:{BUSES[int(node[-1]) - 1]}"
        said = [ballots[validator, who] for validator in VALIDATORS]
        assert [one.is_accepted for one in said] == [False] * 4
        assert all(LIES[kind] in one.reason and len(one.evidence) == 32 for one in said)
    honest = [one for (_, who), one in ballots.items() if who.endswith((":s", "worker-2"))]
    assert len(honest) == 8
    assert all(one.is_accepted and "not hardware" in one.reason for one in honest)


def test_a_day_of_attested_processes_ends_in_a_storm() -> None:
    """Lost, repeated and late answers, and crashes, cost nobody his place."""
    storm = WeatherFaults(loss=0.05, repeat=0.05, reorder=0.05, crash=0.001)
    crash = (Crash(node="validator-2", at_step=1), Crash(node="site-1", at_step=2))
    run = Run({}, Faults(weather=storm, crash=crash), seed=3)
    assert (run.found.outcome, run.found.violations) == ("converged", ())
    assert run.found.result is not None
    assert run.found.result.excluded == ()


def test_one_validator_with_another_policy_neither_lets_in_nor_keeps_out() -> None:
    """f of 3f + 1 may judge as they like."""
    revoking = msgspec.structs.replace(POLICY, revoked=Revoked(roots=POLICY.software_roots))
    run = Run({"site-4": "forged"}, policies={"validator-3": revoking})
    assert run.found.outcome == "converged"
    assert run.found.result is not None
    assert run.found.result.excluded == ("c",)
    assert not run.ballots("validator-1")["validator-3", "site:a"].is_accepted


def test_a_validator_with_forged_evidence_votes_no_more_and_the_day_ends() -> None:
    """It goes on ordering, as one of the f that may be anything, and counts for nothing else."""
    run = Run({"validator-4": "forged"})
    assert (run.found.outcome, run.found.violations) == ("converged", ())
    machine: Any = run._world.machine(NodeId("validator-1"))
    assert machine.replica.service.state.convicted == {"validator-4": "evidence refused"}


class RevokingLater(PolicyAssessor):
    """Take up a policy that revokes a root when everybody has been asked a while ago."""

    revoking = msgspec.structs.replace(POLICY)
    asked = 0

    def ask(self, who: str, public_key: bytes) -> bytes | None:
        self.asked += 1
        if self.asked == 15:
            self.replace_policy(self.revoking)
        return super().ask(who, public_key)


def test_what_is_revoked_during_a_day_ends_a_sites_part_in_it() -> None:
    """Whoever learns of a stolen root does not wait for tomorrow."""
    other = SoftwareProvider(Secret(bytes([7]) * 32), bytes(48))
    both = (*POLICY.software_roots, other.root_key.hex())
    policy = msgspec.structs.replace(POLICY, software_roots=both)
    revoked = Revoked(roots=(other.root_key.hex(),))
    RevokingLater.revoking = msgspec.structs.replace(policy, revoked=revoked)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Shows, "others", {"site-2": quote_by(other, lambda: NOW_S)})
        patch.setattr(sys.modules[__name__], "PolicyAssessor", RevokingLater)
        slow = Faults(
            site_processes=len(BUSES), liar=(Liar(node="worker-1", kind="silent", since=3),)
        )
        policies = dict.fromkeys(VALIDATORS, policy)
        run = Run({}, slow, policies=policies)
    assert (run.found.outcome, run.found.violations) == ("converged", ())
    assert run.found.result is not None
    assert run.found.result.excluded == ("a",)
    assert sum(amount for _, amount in run.found.result.payments) == 0
    machine: Any = run._world.machine(NodeId("validator-1"))
    assert machine.view.bids.keys() >= {"site:b"}
    operations = [
        decode_operation(msgspec.msgpack.decode(octets, type=Record).operation)
        for octets in machine.replica.service.records
    ]
    told = [one for one in operations if isinstance(one, Admit) and one.who == "site:a"]
    assert {True, False} == {one.is_accepted for one in told}


def test_every_kind_of_wrong_evidence_can_be_played_and_others_are_named_at_once() -> None:
    """Whoever writes a faults file corrects it in one go."""
    assert set(LIES) == set(EVIDENCE)
    wrong = (
        WrongEvidence(node="site-1", kind="forged"),
        WrongEvidence(node="operator", kind="stolen"),
    )
    nodes = ("operator", "site-1", *VALIDATORS)
    with pytest.raises(ConfigError) as caught:
        check_faults(Faults(evidence=wrong), nodes, BUSES, "faults.toml")
    assert len(caught.value.findings) == 4
    check_faults(Faults(attested=True, evidence=wrong[:1]), nodes, BUSES, "faults.toml")
