"""pandapower nets become scenarios whose AC power flow equals pandapower's own."""

import dataclasses
import json
import warnings

import numpy as np
import pytest
from click.testing import CliRunner

from veilgrid.cli._import import import_
from veilgrid.errors import ScenarioError, SetupError
from veilgrid.grid import import_pandapower
from veilgrid.grid.acflow import ac_flow
from veilgrid.grid.import_pandapower import ImportChoices, from_pandapower, read_net
from veilgrid.grid.scenario import Scenario

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import pandapower as pp

CHOICES = ImportChoices(name="net")


def _line(net, start: int, end: int, *, km: float = 2.0, parallel: int = 1, **more) -> int:
    return pp.create_line_from_parameters(
        net, start, end, km, 0.3, 0.35, 200.0, max_i_ka=0.3, parallel=parallel, **more
    )


def _trafo(net, hv: int, lv: int, **more) -> int:
    figures = {
        **{"sn_mva": 25.0, "vn_hv_kv": 110.0, "vn_lv_kv": 20.0, "vkr_percent": 0.4},
        **{"vk_percent": 12.0, "pfe_kw": 0.0, "i0_percent": 0.0, "shift_degree": 150.0},
    }
    return pp.create_transformer_from_parameters(net, hv, lv, **figures, **more)


def _net():
    """110/20 kV substation with two busbars, two feeders, an open tie and all that hangs on it."""
    net = pp.create_empty_network(f_hz=50.0)
    hv = pp.create_bus(net, 110.0, name="hv")
    bar = [pp.create_bus(net, 20.0, name=f"bar {k}") for k in range(2)]
    bus = [pp.create_bus(net, 20.0, name=f"bus {k}") for k in range(5)]
    pp.create_ext_grid(net, hv, vm_pu=1.02)
    tap = {"tap_side": "hv", "tap_neutral": 0, "tap_pos": -2, "tap_step_percent": 1.5}
    tap |= {"tap_changer_type": "Ratio", "tap_min": -9, "tap_max": 9}
    _trafo(net, hv, bar[0], **tap)
    _trafo(net, hv, bar[1], **tap)
    pp.create_switch(net, bar[0], bar[1], et="b", closed=True)
    _line(net, bar[0], bus[0], parallel=2)
    _line(net, bus[0], bus[1], km=4.0)
    _line(net, bus[0], bus[1], km=6.0)
    _line(net, bar[1], bus[2], km=3.0)
    _line(net, bus[2], bus[3], km=1.0)
    tie = _line(net, bus[1], bus[3], in_service=True)
    pp.create_switch(net, bus[1], tie, et="l", closed=False)
    pp.create_switch(net, bus[3], tie, et="l", closed=False)
    _line(net, bus[3], bus[4], in_service=False)
    for k in range(4):
        pp.create_load(net, bus[k], p_mw=1.0 + 0.2 * k, q_mvar=0.3)
    pp.create_load(net, bus[0], p_mw=0.5, q_mvar=0.1, scaling=0.6)
    pp.create_load(net, bus[2], p_mw=9.0, in_service=False)
    pp.create_sgen(net, bus[1], p_mw=2.0, q_mvar=-0.4, type="PV")
    pp.create_sgen(net, bus[2], p_mw=1.5, type="WP")
    return net


def _solved(net):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pp.runpp(net, trafo_model="pi", tolerance_mva=1e-9, numba=False)
    return net.res_bus.vm_pu


def _magnitudes(scenario: Scenario) -> dict[str, float]:
    day = scenario.day()
    state = ac_flow(scenario.network.tree, *day.demands(day.uncontrolled))
    names = [str(bus.name) for bus in scenario.network.buses]
    return dict(zip(names, state.magnitude[:, 0].tolist(), strict=True))


def test_the_power_flow_of_an_imported_net_is_pandapowers() -> None:
    net = _net()
    scenario = from_pandapower(net, CHOICES)
    expected, found = _solved(net), _magnitudes(scenario)
    assert set(found) == {"hv", "bar 0", "bus 0", "bus 1", "bus 2", "bus 3"}
    for index, name in net.bus.name.items():
        if name in found and name != "hv":  # The substation's base absorbs the tap position.
            assert found[name] == pytest.approx(expected[index], abs=1e-9)


def test_ratings_parallel_lines_and_transformers_are_merged() -> None:
    scenario = from_pandapower(_net(), CHOICES)
    branches = {(b.parent, b.child): b for b in scenario.network.branches}
    circuit = np.sqrt(3.0) * 20.0 * 0.3
    assert branches["hv", "bar 0"].rating_mva == pytest.approx(50.0)
    assert branches["bar 0", "bus 0"].rating_mva == pytest.approx(2.0 * circuit)
    # Of 4 km beside 6 km the shorter carries 60 %, so 1 / 0.6 of its rating flows at most.
    assert branches["bus 0", "bus 1"].rating_mva == pytest.approx(circuit / 0.6)
    ohm = 20.0**2
    assert branches["bus 0", "bus 1"].resistance_pu == pytest.approx(0.3 * 2.4 / ohm)
    assert branches["bar 0", "bus 0"].resistance_pu == pytest.approx(0.3 * 2.0 / 2.0 / ohm)


def test_what_is_left_out_is_remarked() -> None:
    remarks = "\n".join(map(str, from_pandapower(_net(), CHOICES).remarks))
    assert "bus 7: not energised" in remarks
    assert "line 5: a switch is open" in remarks
    assert "flat prices are assumed" in remarks


def test_a_low_side_tap_and_a_transformer_further_down_keep_the_power_flow() -> None:
    net = _net()
    lv = pp.create_bus(net, 0.4, name="lv")
    pp.create_transformer_from_parameters(
        net,
        4,
        lv,
        **{"sn_mva": 0.63, "vn_hv_kv": 20.0, "vn_lv_kv": 0.42, "vkr_percent": 1.2},
        **{"vk_percent": 6.0, "pfe_kw": 0.0, "i0_percent": 0.0, "parallel": 2},
        **{"tap_side": "lv", "tap_neutral": 0, "tap_pos": 1, "tap_step_percent": 2.5},
        tap_changer_type="Ratio",
    )
    pp.create_load(net, lv, p_mw=0.3, q_mvar=0.1)
    scenario = from_pandapower(net, CHOICES)
    expected, found = _solved(net), _magnitudes(scenario)
    assert found["bus 1"] == pytest.approx(expected[4], abs=1e-9)
    ratio = 0.42 * 1.025 / 0.4
    assert found["lv"] * ratio == pytest.approx(expected[lv], abs=1e-9)
    assert any("voltages of bus" in remark.problem for remark in scenario.remarks)


def test_a_transformer_that_is_fed_from_its_low_side_keeps_the_power_flow() -> None:
    net = pp.create_empty_network(f_hz=50.0)
    bus = [pp.create_bus(net, 20.0, name=f"bus {k}") for k in range(3)]
    high = pp.create_bus(net, 110.0, name="high")
    pp.create_ext_grid(net, bus[0], vm_pu=1.01)
    _line(net, bus[0], bus[1])
    _line(net, bus[1], bus[2])
    _trafo(net, high, bus[1])
    pp.create_load(net, high, p_mw=4.0, q_mvar=1.0)
    pp.create_load(net, bus[2], p_mw=1.0, q_mvar=0.2)
    found, expected = _magnitudes(from_pandapower(net, CHOICES)), _solved(net)
    for index, name in net.bus.name.items():
        assert found[name] == pytest.approx(expected[index], abs=1e-9)


def test_a_meshed_net_names_the_line_and_the_loop() -> None:
    net = _net()
    net.switch.loc[net.switch.et == "l", "closed"] = True
    with pytest.raises(ScenarioError) as caught:
        from_pandapower(net, CHOICES)
    (finding,) = caught.value.findings
    assert "closes the loop" in finding.problem
    assert "meshed" in finding.problem
    assert all(f"bus {bus}" in finding.problem for bus in (3, 4, 5, 6))


def test_parallel_transformers_on_different_taps_are_refused() -> None:
    net = _net()
    net.trafo.loc[1, "tap_pos"] = 3
    with pytest.raises(ScenarioError, match="ratios differ"):
        from_pandapower(net, CHOICES)


def test_without_a_substation_nothing_is_built() -> None:
    net = _net()
    net.ext_grid.loc[:, "in_service"] = False
    with pytest.raises(ScenarioError, match="no external grid"):
        from_pandapower(net, CHOICES)
    net.ext_grid.loc[:, "in_service"] = True
    pp.create_ext_grid(net, 5)
    with pytest.raises(ScenarioError, match="different buses"):
        from_pandapower(net, CHOICES)


def test_elements_that_a_scenario_cannot_hold_are_all_named() -> None:
    net = _net()
    pp.create_ward(net, 4, 0.1, 0.1, 0.0, 0.0)
    pp.create_asymmetric_load(net, 5, p_a_mw=0.1)
    with pytest.raises(ScenarioError) as caught:
        from_pandapower(net, CHOICES)
    wheres = {finding.where for finding in caught.value.findings}
    assert wheres == {"table ward", "table asymmetric_load"}


@pytest.mark.parametrize(
    ("table", "row", "column", "cell", "where"),
    [
        ("load", 0, "bus", 99, "load 0"),
        ("line", 1, "to_bus", 99, "line 1"),
        ("bus", 3, "vn_kv", float("nan"), "bus 3 (bus 0)"),
        ("line", 0, "length_km", float("nan"), "line 0"),
        ("line", 0, "r_ohm_per_km", -1.0, "line 0"),
        ("trafo", 0, "vk_percent", 0.1, "trafo 0"),
        ("trafo", 0, "vn_hv_kv", 20.0, "trafo 0"),
        ("switch", 0, "element", 99, "switch 0"),
        ("load", 0, "p_mw", 5000.0, "load_p_mw.csv row 2, column bus 0"),
    ],
)
def test_a_figure_that_cannot_be_is_named(table, row, column, cell, where) -> None:
    net = _net()
    net[table].loc[row, column] = cell
    with pytest.raises(ScenarioError) as caught:
        from_pandapower(net, CHOICES)
    assert where in [finding.where for finding in caught.value.findings]


def test_negative_generation_is_clipped_and_negative_load_becomes_feed_in() -> None:
    net = _net()
    pp.create_sgen(net, 3, p_mw=-0.002, name="sleepy")
    pp.create_load(net, 3, p_mw=-0.7, name="roof")
    scenario = from_pandapower(net, CHOICES)
    remarks = "\n".join(map(str, scenario.remarks))
    assert "sgen 2 (sleepy): negative generation, at least -0.002 MW, is clipped to 0" in remarks
    assert "load 6 (roof): negative" in remarks
    by_name = {device.name: device for device in scenario.devices}
    assert not by_name["pv2"].available_mw.any()
    assert by_name["feed6"].available_mw.tolist() == [0.7] * 24
    assert scenario.load_p_mw.min() >= 0.0


def test_storage_generators_shunts_and_profiles_are_taken_over() -> None:
    net = _net()
    pp.create_storage(net, 4, p_mw=0.1, max_e_mwh=2.0, min_e_mwh=0.2, soc_percent=50.0, sn_mva=0.5)
    pp.create_gen(net, 5, p_mw=0.8, min_p_mw=0.2, max_p_mw=1.0)
    pp.create_poly_cost(net, 0, "gen", cp1_eur_per_mw=70.0)
    pp.create_sgen(net, 6, p_mw=0.4, type="Biomass_MV")
    pp.create_shunt(net, 3, q_mvar=-0.3, p_mw=0.01)
    hours = np.arange(24.0)
    profiles = {("load", "p_mw"): {0: 0.1 * hours}, ("sgen", "p_mw"): {1: 0.01 * hours}}
    scenario = from_pandapower(
        net, dataclasses.replace(CHOICES, profiles=profiles, generator_cost=55.0)
    )
    by_name = {device.name: device for device in scenario.devices}
    battery, gen = by_name["battery0"], by_name["gen0"]
    assert (battery.charge_max_mw, battery.energy_max_mwh) == (0.5, 1.8)
    assert battery.energy_initial_mwh == battery.energy_final_min_mwh == 0.9
    assert (gen.p_min_mw, gen.p_max_mw, gen.cost_linear) == (0.2, 1.0, 70.0)
    assert by_name["generator2"].cost_linear == 55.0
    assert by_name["wind1"].kind == "wind"
    np.testing.assert_allclose(by_name["wind1"].available_mw, 0.01 * hours)
    at = [str(bus.name) for bus in scenario.network.buses].index("bus 0")
    np.testing.assert_allclose(scenario.load_p_mw[at], 0.1 * hours + 0.3 + 0.01)
    np.testing.assert_allclose(scenario.load_q_mvar[at], 0.3 + 0.06 - 0.3)


def test_an_imported_scenario_is_written_and_read(tmp_path) -> None:
    scenario = from_pandapower(_net(), CHOICES)
    scenario.write(tmp_path)
    assert Scenario.read(tmp_path).files() == scenario.files()


def test_the_verb_writes_a_folder_and_says_what_it_simplified(tmp_path) -> None:
    file, out = tmp_path / "net.json", tmp_path / "out"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pp.to_json(_net(), str(file))
    arguments = ["pandapower", str(file), "--out", str(out), "--json", "--buy", "200"]
    result = CliRunner().invoke(import_, arguments)
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert answer["scenario"] == str(out)
    assert {"where", "problem", "advice"} == set(answer["findings"][0])
    scenario = Scenario.read(out)
    assert scenario.name == "net"
    assert set(scenario.sell.tolist()) == {100.0}
    again = CliRunner().invoke(import_, arguments)
    assert again.exit_code == 3
    assert "exists already" in again.stderr


@pytest.mark.parametrize("text", ["", "{}", "[1, 2]", '"net"', "null", '{"_module": "nowhere"}'])
def test_what_is_no_net_gives_exit_code_2(tmp_path, text: str) -> None:
    file = tmp_path / "net.json"
    file.write_text(text)
    result = CliRunner().invoke(import_, ["pandapower", str(file), "--json"])
    assert result.exit_code == 2
    answer = json.loads(result.stdout)
    assert answer["scenario"] is None
    assert "not a pandapower net" in answer["findings"][0]["problem"]


def test_a_file_that_is_not_there_gives_exit_code_2(tmp_path) -> None:
    result = CliRunner().invoke(import_, ["pandapower", str(tmp_path / "none.json")])
    assert result.exit_code == 2
    assert "No such file" in result.stderr


def test_a_missing_extra_says_what_to_install() -> None:
    with pytest.raises(SetupError, match=r'pip install "veilgrid\[no_such_package\]"'):
        import_pandapower.optional_package("no_such_package")


def test_reading_a_net_gives_the_tables_back() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        text = pp.to_json(_net())
        net = read_net(text)
    assert len(net.bus) == 8
