"""A sealed day on a ledger: an outsider can check it, and no payment stands in it."""

import hashlib
import json

import msgspec
import pytest

from veilgrid.grid.lindistflow import Limits
from veilgrid.ledger.export import check_export
from veilgrid.roles.sealed.day import plan_sealed
from veilgrid.roles.sealed.record import SealedChain, commitment_of, digest_of_opened
from veilgrid.secret import SeededRandomness

from .sealed_days import small

DAY = small(1).day()
PAYMENTS = {"s": 0, "a": 123_456_789, "b": -7_654_321, "c": 55_443_322, "d": 1_234_567}


@pytest.fixture(scope="module")
def recorded() -> tuple[SealedChain, bytes, dict[str, object]]:
    plan = plan_sealed(
        DAY, Limits.of(DAY.network), randomness=SeededRandomness(5), is_recorded=True
    )
    assert isinstance(plan.record, SealedChain)
    plan.record.settle(PAYMENTS)
    return plan.record, plan.record.export(), plan.opened


def test_the_export_is_accepted_and_a_changed_one_is_not(
    recorded: tuple[SealedChain, bytes, dict[str, object]],
) -> None:
    _, export, _ = recorded
    checked = check_export(export, "ledger.json", None)
    assert not checked.problems
    assert checked.record_count > len(DAY.sites)
    file = json.loads(export)
    place = next(k for k, record in enumerate(file["records"]) if len(record) > 200)
    text = file["records"][place]
    file["records"][place] = text[:-2] + ("00" if text[-2:] != "00" else "11")
    assert check_export(json.dumps(file).encode(), "ledger.json", None).problems


def test_it_holds_digests_of_bids_of_all_that_opened_and_of_payments_only(
    recorded: tuple[SealedChain, bytes, dict[str, object]],
) -> None:
    chain, export, opened = recorded
    octets = b"".join(bytes.fromhex(record) for record in json.loads(export)["records"])
    assert digest_of_opened(opened) in octets
    names = sorted(PAYMENTS)
    leaves = [commitment_of(name, PAYMENTS[name], chain.salts[name]) for name in names]
    assert hashlib.sha256(b"".join(leaves)).digest() in octets
    for amount in PAYMENTS.values():
        if abs(amount) > 1 << 16:
            assert msgspec.msgpack.encode(amount) not in octets
            assert str(amount).encode() not in octets
