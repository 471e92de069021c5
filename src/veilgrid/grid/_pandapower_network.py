"""The network of a pandapower net: busbars fused, parallel branches merged, bases found.

A pandapower net is read as tables (``net[name]`` is a DataFrame), so nothing is imported here.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from veilgrid.grid._table import Notes, several
from veilgrid.grid.network import Branch, Bus, BusId, Network

BASE_MVA = 1.0
UNSUPPORTED = (
    "trafo3w",
    "impedance",
    "ward",
    "xward",
    "motor",
    "asymmetric_load",
    "asymmetric_sgen",
    "dcline",
    "line_dc",
    "load_dc",
    "source_dc",
    "vsc",
    "svc",
    "ssc",
    "tcsc",
)


BUS_COLUMNS = {
    **dict.fromkeys(("load", "sgen", "gen", "storage", "shunt", "ext_grid"), ("bus",)),
    "line": ("from_bus", "to_bus"),
    "trafo": ("hv_bus", "lv_bus"),
}
"""Columns of each table that refer to buses."""


@dataclass(frozen=True, kw_only=True)
class _Edge:
    """A branch between fused buses before the per-unit base is known.

    ``ohm`` is as seen from ``end``; ``kv_start`` and ``kv_end`` are the rated voltages of both
    sides at the present tap, equal for lines.
    """

    names: tuple[str, ...]
    start: int
    end: int
    ohm: complex
    siemens: float
    rating_mva: float
    kv_start: float
    kv_end: float

    def turned(self) -> "_Edge":
        """Return the same branch, its ends exchanged."""
        scale = (self.kv_start / self.kv_end) ** 2
        return replace(
            self,
            start=self.end,
            end=self.start,
            ohm=self.ohm * scale,
            siemens=self.siemens / scale,
            kv_start=self.kv_end,
            kv_end=self.kv_start,
        )


@dataclass(frozen=True, kw_only=True)
class ImportedNetwork:
    """A radial network and where the elements of the net stand in it.

    Attributes
    ----------
    bus_of
        Name of the fused bus of each energised bus of the net.
    """

    network: Network
    bus_of: dict[int, BusId]


def active(net: Any, table: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield index and cells of the elements in service of one table."""
    frame = net.get(table)
    if frame is None or not len(frame):
        return
    for index, row in zip(frame.index.tolist(), frame.to_dict("records"), strict=True):
        if bool(row.get("in_service", True)):
            yield int(index), row


def value(row: dict[str, Any], key: str, default: float) -> float:
    """Return a number of a row; absent and NaN are the default."""
    try:
        found = float(row.get(key, default))
    except (TypeError, ValueError):
        return default
    return found if math.isfinite(found) else default


def label(table: str, index: int, row: dict[str, Any]) -> str:
    """Name an element as a person finds it in the net."""
    name = row.get("name")
    return f"{table} {index}" + (f" ({name})" if isinstance(name, str) and name else "")


def import_network(net: Any, notes: Notes) -> ImportedNetwork | None:
    """Build the radial network that hangs from the net's external grid; ``None`` on a fault."""
    for table in UNSUPPORTED:
        listed = [label(table, index, row) for index, row in active(net, table)]
        if listed:
            notes.fault(f"table {table}", f"{several(listed)}: not supported", "replace or remove")
    buses = dict(active(net, "bus"))
    _check_tables(net, notes)
    if notes.findings:
        return None
    fused = _fused(net, buses)
    slack = _slack(net, fused, notes)
    edges = _merged(_edges(net, buses, fused, notes), notes)
    if slack is None or notes.findings:
        return None
    oriented = _oriented(slack[0], edges, notes)
    if notes.findings:
        return None
    base_kv = _bases(slack[0], oriented, buses, notes)
    reached = [slack[0], *(edge.end for edge in oriented)]
    names = _names(reached, buses)
    lost = [index for index, head in fused.items() if head not in names]
    if lost:
        notes.remark("table bus", f"bus {several(lost)}: not energised, left out")
    loaded = {fused[int(row["bus"])] for _, row in active(net, "load") if row["bus"] in fused}
    kinds = {bus: "customer" if bus in loaded else "junction" for bus in reached}
    kinds[slack[0]] = "slack"
    network = Network(
        buses=tuple(Bus(name=names[bus], kind=kinds[bus]) for bus in sorted(reached)),
        branches=tuple(_branch(edge, base_kv, names) for edge in oriented),
        base_mva=BASE_MVA,
        base_kv=_main_level(slack[0], oriented, buses),
        slack_bus=names[slack[0]],
        slack_voltage_pu=slack[1] * float(buses[slack[0]]["vn_kv"]) / base_kv[slack[0]],
        voltage_min_pu=_tightest("min_vm_pu", max, reached[1:], buses, notes),
        voltage_max_pu=_tightest("max_vm_pu", min, reached[1:], buses, notes),
    )
    bus_of = {index: names[head] for index, head in fused.items() if head in names}
    return ImportedNetwork(network=network, bus_of=bus_of)


def _check_tables(net: Any, notes: Notes) -> None:
    """Note elements that refer to no bus, and buses without a voltage."""
    known = set(net["bus"].index.tolist())
    if not known:
        notes.fault("table bus", "is empty")
    for index, row in active(net, "bus"):
        if not value(row, "vn_kv", math.nan) > 0.0:
            notes.fault(label("bus", index, row), f"vn_kv is {row.get('vn_kv')}, must be > 0")
    if not value({"f_hz": net.get("f_hz")}, "f_hz", 0.0) > 0.0:
        notes.fault("net", f"f_hz is {net.get('f_hz')}, must be > 0")
    for table, columns in BUS_COLUMNS.items():
        for index, row in active(net, table):
            for column in columns:
                if row.get(column) not in known:
                    problem = f"{column} is {row.get(column)}, there is no such bus"
                    notes.fault(label(table, index, row), problem)
    for index, row in active(net, "switch"):
        is_bus = row.get("et") == "b"
        others = known if is_bus else {row.get("element")}
        if row.get("bus") not in known or row.get("element") not in others:
            notes.fault(label("switch", index, row), "joins buses that are not there")


def _fused(net: Any, buses: dict[int, dict[str, Any]]) -> dict[int, int]:
    """Map each bus to the lowest bus that closed bus-bus switches join it with."""
    head = {bus: bus for bus in buses}

    def find(bus: int) -> int:
        while head[bus] != bus:
            bus = head[bus]
        return bus

    for _, switch in active(net, "switch"):
        ends = int(switch["bus"]), int(switch["element"])
        if switch["et"] == "b" and switch["closed"] and ends[0] in head and ends[1] in head:
            low, high = sorted((find(ends[0]), find(ends[1])))
            head[high] = low
    return {bus: find(bus) for bus in buses}


def _slack(net: Any, fused: dict[int, int], notes: Notes) -> tuple[int, float] | None:
    """Return the substation's bus and voltage."""
    feeding = [(label("ext_grid", i, row), row) for i, row in active(net, "ext_grid")]
    feeding += [(label("gen", i, row), row) for i, row in active(net, "gen") if row.get("slack")]
    found = [(name, row) for name, row in feeding if int(row["bus"]) in fused]
    if not found:
        notes.fault("table ext_grid", "no external grid is in service", "one substation is needed")
        return None
    buses = {fused[int(row["bus"])] for _, row in found}
    if len(buses) > 1:
        names = several(name for name, _ in found)
        notes.fault("table ext_grid", f"{names} feed at different buses", "keep one of them")
        return None
    return buses.pop(), value(found[0][1], "vm_pu", 1.0)


def _edges(
    net: Any, buses: dict[int, dict[str, Any]], fused: dict[int, int], notes: Notes
) -> list[_Edge]:
    """List lines and transformers in service whose switches are all closed."""
    opened = {
        (str(switch["et"]), int(switch["element"]))
        for _, switch in active(net, "switch")
        if not switch["closed"]
    }
    edges: list[_Edge] = []
    dangling = []
    for table, mark, sides in (
        ("line", "l", ("from_bus", "to_bus")),
        ("trafo", "t", ("hv_bus", "lv_bus")),
    ):
        for index, row in active(net, table):
            ends = [int(row[side]) for side in sides]
            name = label(table, index, row)
            if any(end not in fused for end in ends):
                continue
            if (mark, index) in opened:
                dangling.append(name)
                continue
            if fused[ends[0]] == fused[ends[1]]:
                notes.remark(name, "both ends are on one busbar, left out")
                continue
            build = _line if table == "line" else _transformer
            edge = build(net, name, row, buses, notes)
            if edge is not None:
                edges.append(replace(edge, start=fused[ends[0]], end=fused[ends[1]]))
    if dangling:
        notes.remark("table switch", f"{several(dangling)}: a switch is open, left out")
    return edges


def _share(row: dict[str, Any]) -> float:
    """Share of the rating that may be used."""
    return value(row, "df", 1.0) * value(row, "max_loading_percent", 100.0) / 100.0


def _line(
    net: Any, name: str, row: dict[str, Any], buses: dict[int, dict[str, Any]], notes: Notes
) -> _Edge | None:
    length, parallel = value(row, "length_km", math.nan), value(row, "parallel", 1.0)
    per_km = complex(value(row, "r_ohm_per_km", math.nan), value(row, "x_ohm_per_km", math.nan))
    if not (length > 0.0 and parallel >= 1.0 and per_km.real >= 0.0 and per_km.imag >= 0.0):
        notes.fault(name, "length_km, r_ohm_per_km, x_ohm_per_km or parallel is not usable")
        return None
    if value(row, "g_us_per_km", 0.0) > 0.0:
        notes.remark(name, "its conductance g_us_per_km is neglected")
    omega = 2.0 * math.pi * float(net.f_hz)
    kilovolt = float(buses[int(row["from_bus"])]["vn_kv"])
    current = value(row, "max_i_ka", 0.0)
    rating = math.sqrt(3.0) * kilovolt * current * parallel * _share(row)
    return _Edge(
        names=(name,),
        start=0,
        end=0,
        ohm=per_km * length / parallel,
        siemens=omega * value(row, "c_nf_per_km", 0.0) * 1e-9 * length * parallel,
        rating_mva=rating if rating > 0.0 else math.inf,
        kv_start=1.0,
        kv_end=1.0,
    )


def _transformer(
    net: Any,  # noqa: ARG001 - one signature for both kinds of branches
    name: str,
    row: dict[str, Any],
    buses: dict[int, dict[str, Any]],
    notes: Notes,
) -> _Edge | None:
    """Build the equivalent branch of a transformer, Ohm as seen from its low side."""
    size, parallel = value(row, "sn_mva", math.nan), value(row, "parallel", 1.0)
    total, real = value(row, "vk_percent", math.nan), value(row, "vkr_percent", math.nan)
    kilovolt = [value(row, "vn_hv_kv", math.nan), value(row, "vn_lv_kv", math.nan)]
    if not (size > 0.0 and parallel >= 1.0 and total >= real >= 0.0 and min(kilovolt) > 0.0):
        notes.fault(name, "sn_mva, vk_percent, vkr_percent, vn_hv_kv or vn_lv_kv is not usable")
        return None
    if row.get("tap_dependency_table") is True:
        notes.fault(name, "its tap table is not supported", "set the ratio by tap_step_percent")
        return None
    for tap in ("tap", "tap2"):
        if row.get(f"{tap}_changer_type") in ("Ratio", "Symmetrical"):
            steps = value(row, f"{tap}_pos", 0.0) - value(row, f"{tap}_neutral", 0.0)
            angle = math.radians(value(row, f"{tap}_step_degree", 0.0))
            step = steps * value(row, f"{tap}_step_percent", 0.0) / 100.0
            ratio = abs(1.0 + step * complex(math.cos(angle), math.sin(angle)))
            kilovolt[0 if row.get(f"{tap}_side") == "hv" else 1] *= ratio
    if value(row, "pfe_kw", 0.0) or value(row, "i0_percent", 0.0):
        notes.remark(name, "its iron losses and magnetising current are neglected")
    ohm = complex(real, math.sqrt(total**2 - real**2)) / 100.0 * kilovolt[1] ** 2 / size
    nominal = [float(buses[int(row[side])]["vn_kv"]) for side in ("hv_bus", "lv_bus")]
    if max(kilovolt[0] / nominal[0], nominal[0] / kilovolt[0]) > 1.5:
        notes.fault(name, f"vn_hv_kv {kilovolt[0]:g} does not fit a bus of {nominal[0]:g} kV")
        return None
    return _Edge(
        names=(name,),
        start=0,
        end=0,
        ohm=ohm / parallel,
        siemens=0.0,
        rating_mva=size * parallel * _share(row),
        kv_start=kilovolt[0],
        kv_end=kilovolt[1],
    )


def _merged(edges: list[_Edge], notes: Notes) -> list[_Edge]:
    """Join branches between the same two buses; current divides by their impedances."""
    groups: dict[tuple[int, int], list[_Edge]] = {}
    for edge in edges:
        known = groups.get((edge.end, edge.start))
        if known is not None:
            known.append(edge.turned())
        else:
            groups.setdefault((edge.start, edge.end), []).append(edge)
    merged = []
    for group in groups.values():
        ratios = [edge.kv_start / edge.kv_end for edge in group]
        names = tuple(name for edge in group for name in edge.names)
        if max(ratios) - min(ratios) > 1e-9 * max(ratios):
            advice = "set the same tap position"
            notes.fault(names[0], f"{several(names)} are parallel, ratios differ", advice)
        elif any(edge.ohm == 0.0 for edge in group):
            merged.append(replace(next(edge for edge in group if edge.ohm == 0.0), names=names))
        else:
            ohm = 1.0 / sum(1.0 / edge.ohm for edge in group)
            rating = min(edge.rating_mva * abs(edge.ohm / ohm) for edge in group)
            siemens = sum(edge.siemens for edge in group)
            joined = replace(group[0], ohm=ohm, siemens=siemens, rating_mva=rating, names=names)
            merged.append(joined)
    return merged


def _oriented(slack: int, edges: list[_Edge], notes: Notes) -> list[_Edge]:
    """Turn the branches away from the substation; note each that closes a loop."""
    at: dict[int, list[_Edge]] = {}
    for edge in edges:
        at.setdefault(edge.start, []).append(edge)
        at.setdefault(edge.end, []).append(edge.turned())
    parent: dict[int, int] = {slack: slack}
    oriented: list[_Edge] = []
    used: set[tuple[str, ...]] = set()
    for bus in (queue := [slack]):
        for edge in at.get(bus, []):
            if edge.names in used:
                continue
            used.add(edge.names)
            if edge.end in parent:
                loop = " - ".join(f"bus {each}" for each in _loop(parent, bus, edge.end))
                notes.fault(
                    edge.names[0],
                    f"closes the loop {loop}: the net is meshed, a radial one is needed",
                    "open a switch of the loop or take one of its lines out of service",
                )
            else:
                parent[edge.end] = bus
                queue.append(edge.end)
                oriented.append(edge)
    return oriented


def _loop(parent: dict[int, int], first: int, second: int) -> list[int]:
    """Return the buses of the loop that a branch between two buses of a tree closes."""

    def upward(bus: int) -> list[int]:
        path = [bus]
        while parent[path[-1]] != path[-1]:
            path.append(parent[path[-1]])
        return path

    one, two = upward(first), upward(second)
    while len(one) > 1 and len(two) > 1 and one[-2] == two[-2]:
        one.pop()
        two.pop()
    return [*one, *two[-2::-1], first]


def _main_level(slack: int, oriented: list[_Edge], buses: dict[int, dict[str, Any]]) -> float:
    """Return the nominal voltage that most buses have."""
    levels = [float(buses[bus]["vn_kv"]) for bus in (slack, *(edge.end for edge in oriented))]
    return max(levels, key=lambda level: (levels.count(level), level))


def _bases(
    slack: int, oriented: list[_Edge], buses: dict[int, dict[str, Any]], notes: Notes
) -> dict[int, float]:
    """Return a base voltage for each bus such that every transformer's ratio is one per-unit.

    The first bus of the main level keeps its nominal voltage as base; where a tap makes another
    bus of the net deviate from its nominal voltage, this is remarked.
    """
    base = {slack: 1.0}
    for edge in oriented:
        base[edge.end] = base[edge.start] * edge.kv_end / edge.kv_start
    level = _main_level(slack, oriented, buses)
    first = next(bus for bus in base if float(buses[bus]["vn_kv"]) == level)
    base = {bus: kilovolt * level / base[first] for bus, kilovolt in base.items()}
    shifted = [
        bus
        for bus, kilovolt in base.items()
        if bus != slack and abs(kilovolt / float(buses[bus]["vn_kv"]) - 1.0) > 1e-9
    ]
    if shifted:
        notes.remark(
            "table trafo",
            f"voltages of bus {several(shifted)} are per-unit of {base[shifted[0]]:.6g} kV "
            f"instead of {float(buses[shifted[0]]['vn_kv']):g} kV, because of a transformer ratio",
            "voltage limits apply to that base",
        )
    return base


def _tightest(
    column: str,
    choose: Callable[[set[float]], float],
    reached: list[int],
    buses: dict[int, dict[str, Any]],
    notes: Notes,
) -> float | None:
    """Return the one voltage limit for all buses; ``None`` if no bus has a usable one."""
    limits = {value(buses[bus], column, math.nan) for bus in reached}
    usable = {limit for limit in limits if 0.5 <= limit <= 1.5}
    if not usable:
        return None
    if len(usable) > 1:
        problem = f"{column} differs between buses, {choose(usable):g} is taken for all"
        notes.remark("table bus", problem)
    return choose(usable)


def _names(reached: list[int], buses: dict[int, dict[str, Any]]) -> dict[int, BusId]:
    """Keep the net's own names if they are complete and unique, else its indices."""
    given = [buses[bus].get("name") for bus in reached]
    texts = [name.strip() for name in given if isinstance(name, str) and name.strip()]
    is_usable = len(set(texts)) == len(reached) and not {"interval", "key"} & set(texts)
    return {
        bus: BusId(texts[position] if is_usable else str(bus))
        for position, bus in enumerate(reached)
    }


def _branch(edge: _Edge, base_kv: dict[int, float], names: dict[int, BusId]) -> Branch:
    ohm = base_kv[edge.end] ** 2 / BASE_MVA
    return Branch(
        parent=names[edge.start],
        child=names[edge.end],
        resistance_pu=edge.ohm.real / ohm,
        reactance_pu=edge.ohm.imag / ohm,
        rating_mva=edge.rating_mva,
        charging_pu=edge.siemens * ohm,
    )
