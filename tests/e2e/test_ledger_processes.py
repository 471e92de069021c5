"""Four validators as processes with mutual TLS and journals on disk, and SIGKILL."""

from typing import Any

import msgspec

from veilgrid.ledger.export import Archive, check_export
from veilgrid.ledger.message import Accusation, Anchored, CaughtUp, Confirmed, Diverged
from veilgrid.ledger.workload import Load, configuration_of
from veilgrid.machine import NodeId
from veilgrid.node.local import Deployment, ProcessSpec
from veilgrid.node.signing import load_signer

OUTCOMES = Confirmed | Anchored | CaughtUp | Accusation | Diverged
VALIDATORS = [NodeId(f"validator-{index}") for index in range(1, 5)]
CLIENT = NodeId("client-1")
COUNT = 300


def specs() -> list[ProcessSpec]:
    common: dict[str, Any] = {
        "messages": "veilgrid.ledger.message:MESSAGES",
        "records": "veilgrid.ledger.journalled:RECORDS",
        "compute_threads": 0,
    }
    return [
        *(
            ProcessSpec(
                node=node,
                factory="veilgrid.ledger.workload:build_replica",
                role="validator",
                outcome_count=0,
                **common,
            )
            for node in VALIDATORS
        ),
        ProcessSpec(
            node=CLIENT,
            factory="veilgrid.ledger.workload:build_client",
            arguments=Load(COUNT, 1, 4),
            role="site",
            outcome_count=COUNT,
            **common,
        ),
    ]


def test_killing_the_primary_and_a_backup_in_turn_loses_nothing() -> None:
    """kill -9 and a restart from the journal, while a client keeps asking."""
    with Deployment(specs()) as deployment:
        deployment.start()
        for node, progress in ((VALIDATORS[0], 40), (VALIDATORS[2], 120)):
            assert deployment.wait_until(
                lambda progress=progress: len(deployment.outcomes(CLIENT)) >= progress, 60
            )
            deployment.kill(node)
            deployment.restart(node)
        assert deployment.wait(90)
        answers = deployment.outcomes(CLIENT)
        assert sorted(answers) == list(range(1, COUNT + 1))

        def anchors(node: NodeId) -> int:
            return sum(isinstance(o, Anchored) for o in deployment.outcomes(node, OUTCOMES))

        assert deployment.wait_until(lambda: all(anchors(node) for node in VALIDATORS[1:2]), 30)
        keys = {
            node: load_signer(deployment.folder / f"{node}.seed").verify_key
            for node in (*VALIDATORS, CLIENT)
        }
        results = deployment.stop(OUTCOMES | int)
    assert all(result.exit_code == 0 for result in results), [r.stderr for r in results]
    chosen: dict[int, bytes] = {}
    for result in results[:4]:
        assert not [o for o in result.outcomes if isinstance(o, Accusation | Diverged)]
        for outcome in result.outcomes:
            if isinstance(outcome, Confirmed):
                value = msgspec.msgpack.encode((outcome.digest, outcome.records))
                assert chosen.setdefault(outcome.sequence, value) == value
    archive = Archive(configuration_of(keys))
    for outcome in results[1].outcomes:
        archive.add(outcome)
    octets = archive.export()
    assert octets is not None
    assert check_export(octets, "export", configuration_of(keys).digest()).problems == ()
