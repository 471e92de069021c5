"""A sealed deployment without the scenario: what each process gets, and what is refused."""

import json
import shutil
import struct
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner, Result

sys.path.insert(0, str(Path(__file__).parents[1] / "simulation"))

from small_day import small_scenario

import veilgrid
from veilgrid.cli import cli
from veilgrid.cli._known import known_of
from veilgrid.errors import InputError, SetupError
from veilgrid.grid.lindistflow import Limits
from veilgrid.node.settings import read_settings
from veilgrid.roles.sealed.day import PublicDay, costs_alone
from veilgrid.roles.sealed.deployment import pack_public
from veilgrid.roles.sealed.register_file import Registered

CANARY = 123.456789012345
"""A number that appears nowhere else."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A deployment of six-bus; two processes of sites, the second with farm and village."""
    made = invoke("init", str(tmp_path / "grid"), "--scheme", "sealed", "--scenario", "six-bus")
    assert made.exit_code == 0, made.output
    return tmp_path / "grid"


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


def refused(folder: Path, node: str = "site-2") -> str:
    """Return what a process says that cannot start, which is its owner's fault."""
    done = invoke("node", str(folder / "nodes" / f"{node}.toml"), "--once", "--wait", "0")
    assert isinstance(done.exception, InputError), done.output
    return str(done.exception)


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def test_each_process_of_sites_gets_its_own_problems_and_no_other_numbers(folder: Path) -> None:
    """What it solves is what it would solve if it had read everything."""
    whole = veilgrid.open_scenario("six-bus").day()
    alone = costs_alone(whole)
    seen = set()
    for number in (1, 2, 3):
        settings = read_settings(folder / "nodes" / f"site-{number}.toml")
        known = known_of(settings)
        assert {str(site.name) for site in known.sites.values()} == set(settings.me.buses)
        for bus, site in known.sites.items():
            expected = whole.sites[bus]
            for name in ("linear", "quadratic", "lower", "upper", "row_lower", "row_upper"):
                assert np.array_equal(getattr(site, name), getattr(expected, name)), name
            assert np.array_equal(site.load_p, expected.load_p)
            # Solved one after the other, each from the last: equal to the solver's tolerance.
            assert known.alone[bus] == pytest.approx(alone[bus], rel=1e-8)
        others = veilgrid.open_scenario(settings.data_folder)
        assert {device.bus for device in others.devices} <= set(settings.me.buses)
        rest = [k for k, name in enumerate(known.buses) if name not in settings.me.buses]
        assert not others.load_p_mw[rest].any()
        assert not others.load_q_mvar[rest].any()
        seen |= set(known.sites)
    assert seen == set(range(len(whole.sites)))


def test_everybody_else_reads_the_register_alone(folder: Path) -> None:
    """The same public part as from the whole day, octet by octet; no sites."""
    day = veilgrid.open_scenario("six-bus").day()
    public = pack_public(PublicDay.of(day, Limits.of(day.network)))
    for node in ("party-1", "party-3", "operator"):
        known = known_of(read_settings(folder / "nodes" / f"{node}.toml"))
        assert (known.day, dict(known.sites)) == ("six-bus", {})
        assert pack_public(known.public) == public


def test_secret_numbers_are_in_the_owners_folder_only(tmp_path: Path) -> None:
    """A cost and a load that appear nowhere else are found with their owner, in no other file."""
    scenario = small_scenario()
    load = scenario.load_p_mw.copy()
    load[2, 1] = CANARY / 1000.0
    devices: tuple[Any, ...] = scenario.devices
    devices = tuple(replace(device, cost_linear=CANARY) for device in devices)
    marked = replace(scenario, load_p_mw=load, devices=devices)
    (tmp_path / "day").mkdir()
    marked.write(tmp_path / "day")
    grid = tmp_path / "grid"
    arguments = ("--scheme", "sealed", "--sites", "4", "--scenario", str(tmp_path / "day"))
    assert invoke("init", str(grid), *arguments).exit_code == 0
    per_interval = CANARY * scenario.network.base_mva * scenario.horizon.hours
    needles = [repr(CANARY).encode(), repr(CANARY / 1000.0).encode()]
    needles += [struct.pack("<d", x) for x in (CANARY, CANARY / 1000.0, per_interval)]
    holders = {
        str(path.relative_to(grid))
        for path in grid.rglob("*")
        if path.is_file() and any(needle in path.read_bytes() for needle in needles)
    }
    assert holders == {
        "sites/site-2/devices.csv",  # The battery's cost.
        "sites/site-3/devices.csv",  # The generator's.
        "sites/site-3/load_p_mw.csv",
    }


def test_an_owner_may_change_every_number_but_not_what_is_registered(folder: Path) -> None:
    devices = folder / "sites" / "site-2" / "devices.csv"
    edit(
        devices, "battery-village,village,battery,,,0,10,", "battery-village,village,battery,,,0,7,"
    )
    known = known_of(read_settings(folder / "nodes" / "site-2.toml"))
    village = known.sites[list(known.buses).index("village")]
    assert 7.0 in np.round(village.linear, 9)
    edit(devices, "wind-farm,farm,wind,,0.5,0,5,0", "wind-farm,farm,wind,,0.5,0,5,3")
    edit(folder / "sites" / "site-2" / "tariff.csv", "\n3,80,45", "\n3,81,45")
    edit(folder / "sites" / "site-2" / "scenario.toml", 'name = "six-bus"', 'name = "other"')
    told = refused(folder)
    for part in (
        "bus farm: other than registered: which devices have a quadratic cost",
        "tariff.csv, column buy: other than registered in interval 3",
        "it is called 'other', the registered day 'six-bus'",
    ):
        assert part in told, told
    lines = [line for line in devices.read_text().splitlines() if "battery" not in line]
    devices.write_text("\n".join(lines) + "\n")
    assert "bus village: other than registered: number or kinds of devices" in refused(folder)


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        ("base_mva = 1", "base_mva = 10", "base_mva is 10, in the register 1"),
        ("interval_count = 24", "interval_count = 23", "interval"),
    ],
)
def test_data_of_another_day_are_refused(folder: Path, old: str, new: str, part: str) -> None:
    edit(folder / "sites" / "site-2" / "scenario.toml", old, new)
    assert part in refused(folder)


def test_a_directory_without_the_files_it_names_says_which(folder: Path) -> None:
    shutil.rmtree(folder / "sites" / "site-2")
    assert "sites/site-2: no such folder" in refused(folder)
    edit(folder / "nodes" / "site-3.toml", 'data = "../sites/site-3"\n', "")
    assert "key data" in refused(folder, "site-3")
    settings = read_settings(folder / "nodes" / "party-1.toml")
    register = folder / "register.day"
    octets = register.read_bytes()
    register.write_bytes(octets[:-1] + bytes([octets[-1] ^ 1]))
    with pytest.raises(SetupError, match="is not the register"):
        known_of(settings)
    register.unlink()
    with pytest.raises(SetupError, match="cannot be read"):
        known_of(settings)


def test_what_is_no_register_is_said_so() -> None:
    fresh = Registered.of(veilgrid.open_scenario("six-bus"))
    other = msgspec.msgpack.encode([2, "six-bus", 1.0, b""])
    for octets, part in ((b"", "no register"), (b"\xc1", "no register"), (other, "format 2")):
        with pytest.raises(InputError, match=part):
            Registered.read(octets, "register.day")
    again = Registered.read(fresh.octets(), "register.day")
    assert again.octets() == fresh.octets()


def test_a_register_of_a_masked_day_and_one_without_digest_are_refused(folder: Path) -> None:
    directory = folder / "deployment.toml"
    edit(directory, "register_sha256 = ", "# ")
    edit(directory, 'scheme = "sealed"', 'scheme = "masked"')
    told = refused(folder, "site-1")
    assert "key register: is for sealed days" in told
    assert "key register_sha256" in told


def test_summaries_name_the_same_keys_as_before(tmp_path: Path) -> None:
    """Who reads `init --json` finds the scenario by its name."""
    done = invoke(
        "init", str(tmp_path / "grid"), "--scheme", "sealed", "--scenario", "six-bus", "--json"
    )
    assert json.loads(done.output)["scenario"] == "six-bus"
