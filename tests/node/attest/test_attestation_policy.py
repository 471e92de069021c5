"""The policy file: strict where it says nothing, every broken rule found at once."""

from pathlib import Path

import pytest

from veilgrid.errors import ConfigError, SetupError
from veilgrid.node.attest.policy import Policy, parse_policy, read_policy

GOOD = f"""
format = 1
accept_software = true
software_roots = ["{"ab" * 32}"]
age_max_s = 60
[[program]]
name = "party"
kind = "tdx"
measurement = "{"cd" * 48}"
statuses = ["ok", "SWHardeningNeeded"]
[revoked]
advisories = ["INTEL-SA-00615"]
[minimum]
snp = 8
"""


def test_a_sound_file_is_read() -> None:
    policy = parse_policy(GOOD, "policy")
    assert policy.program[0].statuses == ("ok", "SWHardeningNeeded")
    assert policy.minimum.firmware.snp == 8
    assert policy.roots == {bytes.fromhex("ab" * 32)}
    assert policy.revoked.advisories == ("INTEL-SA-00615",)


def test_what_a_file_does_not_say_is_strict() -> None:
    """A forgotten key must not open a door."""
    policy = parse_policy("format = 1", "policy")
    assert policy == Policy()
    assert not policy.accept_software
    assert not policy.accept_debug
    assert policy.program == ()


def test_unknown_keys_and_wrong_types_are_found_all_at_once() -> None:
    text = GOOD.replace("age_max_s = 60", 'age_max_s = "long"\nproduction = true')
    text = text.replace('name = "party"', "nam = 3").replace("snp = 8", "snp = 8.5\nmicro = 1")
    text = text.replace('kind = "tdx"', 'kind = "sgx2"')
    with pytest.raises(ConfigError) as caught:
        parse_policy(text, "p.toml")
    places = [finding.where for finding in caught.value.findings]
    assert sorted(places) == sorted(
        [
            "p.toml, key production",
            "p.toml, key age_max_s",
            "p.toml, key program, entry 1, key nam",
            "p.toml, key program, entry 1, key kind",
            "p.toml, key minimum, key micro",
            "p.toml, key minimum, key snp",
        ]
    )


def test_values_that_cannot_be_are_found_all_at_once() -> None:
    text = GOOD.replace("format = 1", "format = 2").replace("age_max_s = 60", "age_max_s = -1")
    text = text.replace("cd" * 48, "cd" * 47).replace('"SWHardeningNeeded"', '"Revoked"')
    text = text.replace("ab" * 32, "AB" * 32).replace("INTEL-SA-00615", "SA-615")
    text = text.replace("snp = 8", "snp = 256").replace("= true", "= false")
    with pytest.raises(ConfigError) as caught:
        parse_policy(text, "p.toml")
    found = str(caught.value)
    parts = (
        "key format",
        "key age_max_s",
        "94 digits, 96 are needed",
        "'Revoked' cannot be accepted",
        "is not hexadecimal",
        "'SA-615'",
        "is 256",
        "accept_software is false",
    )
    assert [part for part in parts if part not in found] == []
    assert len(caught.value.findings) == len(parts)


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="cannot be read"):
        read_policy(tmp_path / "none.toml")
    for octets, reason in ((b"\xff\xfe", "no UTF-8"), (b"format = ", "no TOML"), (b"", "missing")):
        (tmp_path / "p.toml").write_bytes(octets)
        with pytest.raises(ConfigError, match=reason):
            read_policy(tmp_path / "p.toml")
    deep = "a = " + "[" * 5000
    (tmp_path / "p.toml").write_text(deep)
    with pytest.raises(ConfigError):
        read_policy(tmp_path / "p.toml")
