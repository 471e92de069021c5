"""Planted readings are looked for in every frame, log, error, file and process table entry."""

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest
from node_machines import SHARING, Sharing

from veilgrid.errors import RunAborted
from veilgrid.machine import Decide, NodeId, Persist, Received, Send, TimerFired
from veilgrid.node.certificate import Authority
from veilgrid.node.local import Deployment, ProcessSpec, run_in_process
from veilgrid.node.signing import AuditLog
from veilgrid.node.transport import Endpoint, Peer
from veilgrid.node.wire import Codec
from veilgrid.secret import Secret, SystemRandomness
from veilgrid.sim import canary_forms

MACHINES = Path(__file__).parents[1] / "node"
READINGS = [771_234_567_891, 772_345_678_912, 773_456_789_123]
NODES = [NodeId(f"p{index}") for index in range(3)]
FORMS = [form for reading in READINGS for form in canary_forms(reading)]


def found_in(octets: bytes) -> bool:
    return any(form in octets for form in FORMS)


class RecordingCodec(Codec):
    """Keeps every body that is encoded or decoded."""

    __slots__ = ("bodies",)

    def __init__(self, messages: Any) -> None:
        super().__init__(messages)
        self.bodies: list[bytes] = []

    def encode(self, message: Any) -> bytes:
        self.bodies.append(super().encode(message))
        return self.bodies[-1]


async def add_up(folder: Path, codec: Codec, *, is_leaky: bool) -> tuple[list[Any], str]:
    """Run the parties over TLS in this process; return outcomes and all metrics as text."""
    authority, outcomes = Authority.create(), []
    machines = {
        node: Sharing(node, NODES, Secret(reading), SystemRandomness(), is_leaky)
        for node, reading in zip(NODES, READINGS, strict=True)
    }
    endpoints: dict[NodeId, Endpoint] = {}

    def step(node: NodeId, event: Any) -> None:
        for effect in machines[node].handle(event):
            match effect:
                case Send(to, message) if to == node:
                    step(node, Received(node, message))
                case Send(to, message):
                    endpoints[node].send(to, message)
                case Decide(outcome):
                    outcomes.append(outcome)
                case Persist():
                    pass
        endpoints[node].flush()

    audit = AuditLog(folder / "audit", pytest.fail)
    for node in NODES:
        endpoints[node] = Endpoint(
            node,
            authority.issue(folder, node, "party"),
            codec,
            lambda peer, message, _, node=node: step(node, Received(peer, message)),
            audit=audit.write,
        )
        endpoints[node].listen()
    for node in NODES:
        endpoints[node].update_peers(
            Peer(node=other, role="party", port=endpoints[other].port) for other in NODES
        )
    for node in NODES:
        await endpoints[node].connected(10)
    for node in NODES:
        step(node, TimerFired("start"))
    async with asyncio.timeout(10):
        while len(outcomes) < len(NODES):
            await asyncio.sleep(0.002)
    seen = repr(endpoints) + repr(machines) + repr([one.metrics for one in endpoints.values()])
    for endpoint in endpoints.values():
        await endpoint.close()
    audit.close()
    return outcomes, seen


@pytest.mark.parametrize("is_leaky", [False, True])
def test_no_frame_log_or_metric_holds_a_reading(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, is_leaky: bool
) -> None:
    """With sharing switched off the same scan finds the readings: it does look."""
    caplog.set_level(logging.DEBUG)
    codec = RecordingCodec(SHARING)
    outcomes, seen = asyncio.run(add_up(tmp_path, codec, is_leaky=is_leaky))
    assert outcomes == [sum(READINGS)] * 3
    assert len(codec.bodies) >= 12
    assert any(found_in(body) for body in codec.bodies) == is_leaky
    assert not found_in(caplog.text.encode())
    assert not found_in(seen.encode())
    assert not found_in((tmp_path / "audit").read_bytes())


def sharing_specs(factory: str = "sharing", **more: Any) -> list[ProcessSpec]:
    return [
        ProcessSpec(
            node=node,
            factory=f"node_machines:{factory}",
            messages="node_machines:SHARING",
            records="node_machines:Kept",
            arguments={"reading": reading},
            **more,
        )
        for node, reading in zip(NODES, READINGS, strict=True)
    ]


def test_no_file_command_line_or_environment_of_a_process_holds_a_reading(tmp_path: Path) -> None:
    """The reading itself is journalled here: it must be unreadable on disk."""
    folder = tmp_path / "deployment"
    specs = sharing_specs()
    with Deployment(specs, folder=folder, import_paths=[MACHINES]) as deployment:
        deployment.start()
        assert deployment.wait(20)
        for node in NODES:
            process = Path("/proc") / str(deployment.pid(node))
            for name in ("cmdline", "environ"):
                assert not found_in((process / name).read_bytes())
        results = deployment.stop()
    assert [result.outcomes for result in results] == [[sum(READINGS)]] * 3
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} >= {".journal", ".stderr", ".key", ".pem"}
    for path in files:
        assert not found_in(path.read_bytes()), path.name
    assert all((folder / f"{node}.journal").stat().st_size > 100 for node in NODES)


def test_a_journal_that_is_named_is_encrypted_when_a_key_is_given(tmp_path: Path) -> None:
    for key in (Secret(bytes(range(32))), None):
        path = tmp_path / f"{key is None}.journal"
        spec, *others = sharing_specs()
        named = ProcessSpec(
            node=spec.node,
            factory=spec.factory,
            messages=spec.messages,
            records=spec.records,
            arguments=spec.arguments,
            journal=path,
            journal_key=key,
        )
        with Deployment([named, *others], import_paths=[MACHINES]) as deployment:
            deployment.start()
            assert deployment.wait(20)
            deployment.stop()
        assert found_in(path.read_bytes()) == (key is None)


def test_an_error_that_quotes_its_input_is_printed_without_it() -> None:
    specs = sharing_specs("clumsy")
    with Deployment(specs, import_paths=[MACHINES]) as deployment:
        deployment.start()
        deployment.wait(20)
        results = deployment.stop()
    for result in results:
        assert result.exit_code == 70
        assert "ValueError" in result.stderr
        assert not found_in(result.stderr.encode())


def test_wrong_arguments_are_refused_without_repeating_them() -> None:
    spec = ProcessSpec(
        node=NODES[0],
        factory="node_machines:sharing",
        messages="node_machines:SHARING",
        arguments={"reading": str(READINGS[0])},
    )
    with pytest.raises(Exception, match="are not") as caught:
        run_in_process([spec])
    assert not found_in(str(caught.value).encode())
    assert not isinstance(caught.value, RunAborted)
