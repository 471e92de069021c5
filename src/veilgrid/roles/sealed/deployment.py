"""Parties and sites of a sealed day as processes: what each is told, and how it is built.

A party is told what is public and its own key; a process of sites its own sites' problems. The
arguments are made by whoever starts the processes, which on one machine is the same person.
"""

import io
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import msgspec
import numpy as np
from scipy import sparse

from veilgrid.admm.exchange import ExchangeSettings
from veilgrid.grid.lindistflow import Correction, Limits
from veilgrid.grid.network import Tree
from veilgrid.grid.site import Site, Span
from veilgrid.machine import NodeId
from veilgrid.roles.sealed.bid import Shape
from veilgrid.roles.sealed.day import PublicDay
from veilgrid.roles.sealed.keys import SiteKeys
from veilgrid.roles.sealed.message import Agreement, Record
from veilgrid.roles.sealed.party import SealedParty
from veilgrid.roles.sealed.payer import Payer, PayerRecord
from veilgrid.roles.sealed.register import Register
from veilgrid.roles.sealed.sites import SiteGroup
from veilgrid.roles.sealed.sites_kept import SiteRecord
from veilgrid.secret import Randomness, Secret
from veilgrid.signature import Signer, Signs

_TREE = (
    "parent",
    "order",
    "resistance_pu",
    "reactance_pu",
    "charging_pu",
    "rating_pu",
)
_SHAPE = ("rows", "columns", "is_equality", "has_lower", "has_upper")
_REACTIVE = ("reactive_rows", "reactive_columns", "curved")
_SITE = ("quadratic", "linear", "lower", "upper", "row_lower", "row_upper")
_REST = ("load_p", "load_q", "uncontrolled")


class Agreed(msgspec.Struct, frozen=True):
    """The agreement of a day as it travels to processes."""

    day: bytes
    parties: list[str]
    degree: int
    box_keys: list[bytes]
    site_keys: dict[int, bytes]
    groups: dict[int, str]
    payer: str = ""
    payer_key: bytes = b""

    @classmethod
    def of(cls, agreement: Agreement) -> "Agreed":
        """Write an agreement."""
        return cls(
            agreement.day,
            [str(name) for name in agreement.parties],
            agreement.degree,
            list(agreement.box_keys),
            dict(agreement.site_keys),
            {bus: str(name) for bus, name in agreement.groups.items()},
            str(agreement.payer or ""),
            agreement.payer_key,
        )

    def agreement(self) -> Agreement:
        """Return the agreement."""
        return Agreement(
            self.day,
            tuple(NodeId(name) for name in self.parties),
            self.degree,
            tuple(self.box_keys),
            self.site_keys,
            {bus: NodeId(name) for bus, name in self.groups.items()},
            payer=NodeId(self.payer) if self.payer else None,
            payer_key=self.payer_key,
        )


class PartyArguments(msgspec.Struct, frozen=True):
    """What a party's process is told."""

    agreed: Agreed
    public: bytes
    box_key: bytes
    patience_ns: int = 20_000_000_000


class SiteArguments(msgspec.Struct, frozen=True):
    """What a process of sites is told: their problems and keys, by bus."""

    agreed: Agreed
    public: bytes
    sites: dict[int, bytes]
    costs_alone: dict[int, float]
    signing_seeds: dict[int, bytes]
    salt_keys: dict[int, bytes]


class PayerArguments(msgspec.Struct, frozen=True):
    """What the payer's process is told.

    Attributes
    ----------
    unit
        Of prices on shares.
    """

    agreed: Agreed
    unit: float
    signing_seed: bytes


def _packed(arrays: Mapping[str, Any]) -> bytes:
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


def _unpacked(octets: bytes) -> dict[str, Any]:
    with np.load(io.BytesIO(octets), allow_pickle=False) as found:
        return {name: found[name] for name in found.files}


def _sparse_parts(name: str, matrix: Any) -> dict[str, Any]:
    own = matrix.tocoo()
    shape = np.array(own.shape)
    return {
        f"{name}/data": own.data,
        f"{name}/row": own.row,
        f"{name}/column": own.col,
        f"{name}/shape": shape,
    }


def _sparse_of(parts: Mapping[str, Any], name: str) -> sparse.coo_matrix:
    index = (parts[f"{name}/row"], parts[f"{name}/column"])
    shape = tuple(parts[f"{name}/shape"].tolist())
    return sparse.coo_matrix((parts[f"{name}/data"], index), shape=shape)


def pack_public(public: PublicDay) -> bytes:
    """Write the public part of a day."""
    register, limits = public.register, public.register.limits
    arrays: dict[str, Any] = {f"tree/{name}": getattr(limits.tree, name) for name in _TREE}
    arrays |= {name: getattr(register, name) for name in ("buy", "sell", "give_p", "give_q")}
    if limits.correction is not None:
        arrays |= {f"correction/{k}": part for k, part in enumerate(limits.correction)}
    for bus, shape in enumerate(public.shapes):
        arrays |= {f"shape/{bus}/{name}": getattr(shape, name) for name in (*_SHAPE, *_REACTIVE)}
        arrays |= _sparse_parts(f"shape/{bus}/inject_p", shape.inject_p)
        sizes = (shape.row_count, shape.variable_count, shape.interval_count)
        arrays[f"shape/{bus}/sizes"] = np.array(sizes)
    told = {
        "slack_voltage_pu": limits.tree.slack_voltage_pu,
        "squared_min": limits.squared_min,
        "squared_max": limits.squared_max,
        "strength_max": register.strength_max,
        "voltage_limits": list(register.voltage_limits),
        "settings": asdict(public.settings),
        "turnover_min": public.turnover_min,
        "flexible": list(public.flexible),
        "names": [shape.name for shape in public.shapes],
    }
    return msgspec.msgpack.encode([told, _packed(arrays)])


def unpack_public(octets: bytes) -> PublicDay:
    """Read the public part of a day."""
    told, packed = msgspec.msgpack.decode(octets)
    arrays = _unpacked(packed)
    tree = Tree(
        **{name: arrays[f"tree/{name}"] for name in _TREE},
        slack_voltage_pu=told["slack_voltage_pu"],
    )
    has_correction = "correction/0" in arrays
    correction = (
        Correction(*(arrays[f"correction/{k}"] for k in range(3))) if has_correction else None
    )
    limits = Limits(
        tree=tree,
        squared_min=told["squared_min"],
        squared_max=told["squared_max"],
        correction=correction,
    )
    register = Register(
        limits=limits,
        **{name: arrays[name] for name in ("buy", "sell", "give_p", "give_q")},
        strength_max=told["strength_max"],
        voltage_limits=tuple(told["voltage_limits"]),
    )
    shapes = tuple(_shape_of(arrays, bus, name) for bus, name in enumerate(told["names"]))
    return PublicDay(
        register=register,
        shapes=shapes,
        settings=ExchangeSettings(**told["settings"]),
        turnover_min=told["turnover_min"],
        flexible=tuple(told["flexible"]),
    )


def _shape_of(arrays: Mapping[str, Any], bus: int, name: str) -> Shape:
    rows, variables, intervals = arrays[f"shape/{bus}/sizes"].tolist()
    return Shape(
        name=name,
        row_count=rows,
        variable_count=variables,
        interval_count=intervals,
        inject_p=_sparse_of(arrays, f"shape/{bus}/inject_p").tocsr(),
        **{part: arrays[f"shape/{bus}/{part}"] for part in (*_SHAPE, *_REACTIVE)},
    )


def pack_site(site: Site) -> bytes:
    """Write one site's own problem."""
    arrays = {name: getattr(site, name) for name in (*_SITE, *_REST)}
    for name in ("matrix", "inject_p", "inject_q"):
        arrays |= _sparse_parts(name, getattr(site, name))
    spans = [[span.device, span.kind, span.group, span.start] for span in site.spans]
    told = [str(site.name), site.bus, [list(row) for row in site.row_names], spans]
    return msgspec.msgpack.encode([told, _packed(arrays)])


def unpack_site(octets: bytes) -> Site:
    """Read one site's own problem."""
    (name, bus, row_names, spans), packed = msgspec.msgpack.decode(octets)
    arrays = _unpacked(packed)
    return Site(
        name=name,
        bus=bus,
        matrix=_sparse_of(arrays, "matrix").tocsc(),
        inject_p=_sparse_of(arrays, "inject_p").tocsr(),
        inject_q=_sparse_of(arrays, "inject_q").tocsr(),
        row_names=tuple((device, what, count) for device, what, count in row_names),
        spans=tuple(Span(*span) for span in spans),
        **{part: arrays[part] for part in (*_SITE, *_REST)},
    )


def build_party(
    me: NodeId,
    arguments: PartyArguments,
    records: Sequence[Record],
    randomness: Randomness,
    signer: Signs,
    verify_keys: Mapping[NodeId, bytes],
) -> SealedParty:
    """Make one party; a factory for processes."""
    from veilgrid.mpc.workload import warm_up

    warm_up()
    public = unpack_public(arguments.public)
    return SealedParty(
        me,
        arguments.agreed.agreement(),
        public.course(),
        public.shapes,
        public.tolerances,
        box_key=Secret(arguments.box_key),
        signer=signer,
        verify_keys=verify_keys,
        randomness=randomness,
        patience_ns=arguments.patience_ns,
        records=records,
    )


def build_sites(
    me: NodeId,
    arguments: SiteArguments,
    records: Sequence[SiteRecord],
    randomness: Randomness,
    signer: Signs,  # noqa: ARG001 - every site signs with its own key
    verify_keys: Mapping[NodeId, bytes],  # noqa: ARG001 - the transport knows the parties
) -> SiteGroup:
    """Make the sites of one process; a factory for processes."""
    public = unpack_public(arguments.public)
    sites = {bus: unpack_site(octets) for bus, octets in arguments.sites.items()}
    keys = {
        bus: SiteKeys(Signer(Secret(seed)), Secret(arguments.salt_keys[bus]))
        for bus, seed in arguments.signing_seeds.items()
    }
    return SiteGroup(
        me,
        arguments.agreed.agreement(),
        public.course(),
        sites,
        arguments.costs_alone,
        keys=keys,
        randomness=randomness,
        executor=ThreadPoolExecutor(2),
        records=records,
    )


def build_payer(
    me: NodeId,
    arguments: PayerArguments,
    records: Sequence[PayerRecord],
    randomness: Randomness,
    signer: Signs,  # noqa: ARG001 - the day's agreement names another key
    verify_keys: Mapping[NodeId, bytes],  # noqa: ARG001 - the transport knows the parties
) -> Payer:
    """Make the payer; a factory for processes."""
    return Payer(
        me,
        arguments.agreed.agreement(),
        arguments.unit,
        signer=Signer(Secret(arguments.signing_seed)),
        randomness=randomness,
        records=records,
    )
