"""Another day in a deployment that is there: keys and addresses stay, the day is new."""

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import veilgrid
from veilgrid.cli import cli
from veilgrid.cli._known import known_of
from veilgrid.cli._part import day_of
from veilgrid.errors import InputError, SetupError
from veilgrid.node import next_day
from veilgrid.node.settings import read_deployment, read_settings


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


@pytest.fixture
def tomorrow(tmp_path: Path) -> Path:
    """six-bus with a dearer tariff and another battery, as a folder of another name."""
    tables = veilgrid.open_scenario("six-bus").tables()
    tables["scenario"].loc["name", "value"] = "tomorrow"
    tables["tariff"]["buy"] += 7.0
    tables["devices"].loc["battery-village", "energy_max_mwh"] = 2.4
    folder = tmp_path / "tomorrow"
    folder.mkdir()
    veilgrid.Scenario.from_tables(tables).write(folder)
    return folder


def made(tmp_path: Path, *options: str) -> Path:
    folder = tmp_path / "grid"
    done = invoke("init", str(folder), "--scenario", "six-bus", *options)
    assert done.exit_code == 0, done.output
    return folder


def test_a_sealed_day_follows_another_with_the_same_keys(tmp_path: Path, tomorrow: Path) -> None:
    """Register, own data and directory agree again; what was edited by hand stays."""
    folder = made(tmp_path, "--scheme", "sealed")
    directory = folder / "deployment.toml"
    edited = directory.read_text().replace(
        "degree = 1 ", "patience_s = 7  # slow line\ndegree = 1 "
    )
    directory.write_text(edited.replace("port = 47001", "port = 48001"))
    mine = folder / "sites" / "site-2" / "devices.csv"
    mine.write_text(mine.read_text().replace(",0,10,", ",0,9,"))
    before, keys = read_deployment(directory), sorted((folder / "keys").iterdir())
    octets = [path.read_bytes() for path in keys]
    done = invoke("init", str(folder), "--next-day", "--scenario", str(tomorrow))
    assert done.exit_code == 0, done.output
    assert "tomorrow run 2" in done.output
    after = read_deployment(directory)
    assert after.process == before.process
    assert (after.patience_s, after.run, after.scenario) == (7, 2, "../tomorrow")
    assert "# slow line" in directory.read_text()
    assert [path.read_bytes() for path in sorted((folder / "keys").iterdir())] == octets
    whole = veilgrid.open_scenario(tomorrow).day()
    for node in ("party-2", "operator", "site-1", "site-2", "site-3"):
        settings = read_settings(folder / "nodes" / f"{node}.toml")
        known = known_of(settings)
        assert day_of(settings, known.day) == "tomorrow run 2"
        assert known.public.register.buy == pytest.approx(whole.buy)
        for bus, site in known.sites.items():
            assert site.upper == pytest.approx(whole.sites[bus].upper)
    assert ",0,9," in (folder / "sites" / "site-2.before" / "devices.csv").read_text()
    assert (folder / "sites" / "site-2").stat().st_mode & 0o077 == 0
    done = invoke("init", str(folder), "--next-day", "--scenario", "six-bus")
    assert "six-bus run 3" in done.output  # Not the journals of its first run.


def test_a_masked_day_follows_another(tmp_path: Path, tomorrow: Path) -> None:
    folder = made(tmp_path)
    assert invoke("init", str(folder), "--next-day", "--scenario", str(tomorrow)).exit_code == 0
    after = read_deployment(folder / "deployment.toml")
    assert (after.scenario, after.run, after.register) == ("../tomorrow", 2, "")
    assert not (folder / "register.day").exists()
    assert not (folder / "sites").exists()


def test_other_sites_and_options_of_new_folders_are_refused_together(tmp_path: Path) -> None:
    folder = made(tmp_path, "--scheme", "sealed")
    text = (folder / "deployment.toml").read_bytes()
    done = invoke("init", str(folder), "--next-day", "--sites", "2", "--production")
    for part in ("--sites", "--production", "--scenario: is not given"):
        assert part in str(done.exception)
    done = invoke("init", str(folder), "--next-day", "--scenario", "simbench-rural-2016-01-18")
    for part in ("edge device of bus 97", "bus farm is not in scenario"):
        assert part in str(done.exception)
    assert isinstance(done.exception, InputError)
    assert (folder / "deployment.toml").read_bytes() == text
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "deployment.toml" in str(
        invoke("init", str(empty), "--next-day", "--scenario", "six-bus").exception
    )


def test_a_crash_on_the_way_leaves_a_deployment_that_says_what_is_wrong(
    tmp_path: Path, tomorrow: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The directory comes last: nobody plans a day that others do not."""
    folder = made(tmp_path, "--scheme", "sealed")

    def fail(*_: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(next_day, "_with_keys", fail)
    done = invoke("init", str(folder), "--next-day", "--scenario", str(tomorrow))
    assert "No space left" in str(done.exception)
    with pytest.raises(SetupError, match="is not the register"):
        known_of(read_settings(folder / "nodes" / "party-1.toml"))
    monkeypatch.undo()
    assert invoke("init", str(folder), "--next-day", "--scenario", str(tomorrow)).exit_code == 0
    assert known_of(read_settings(folder / "nodes" / "party-1.toml")).day == "tomorrow"
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('run = 4 # x\n\n[[process]]\nrun = "1"\n', 'run = 5 # x\n\n[[process]]\nrun = "1"\n'),
        ("a = 1\n\n[[process]]\n", "a = 1\nrun = 5\n\n[[process]]\n"),
        ('rerun = 1\nrun="a # b"\n[[process]]\n', "rerun = 1\nrun = 5\n[[process]]\n"),
    ],
)
def test_keys_are_set_where_they_stand(text: str, expected: str) -> None:
    assert next_day._with_keys(text, {"run": "5"}) == expected
