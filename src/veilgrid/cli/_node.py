"""``veilgrid node``: one process of a deployment on disk [node 13]."""

import json
import logging
import sys
from pathlib import Path
from typing import Any

import click

from veilgrid.cli._deployed import result_told
from veilgrid.errors import Finding, InputError, RunAborted
from veilgrid.node.certificate import write_private
from veilgrid.node.driver import run_guarded
from veilgrid.node.hosted import Manners, Part, serve
from veilgrid.node.member import until_fatal
from veilgrid.node.settings import Settings, read_settings
from veilgrid.roles.ledger_message import DayResult, StepEnded
from veilgrid.roles.sealed.record import is_sound


@click.command()
@click.argument("config", metavar="CONFIG.toml", type=click.Path(path_type=Path))
@click.option("--wait", "wait_s", default=300.0, help="Seconds to wait for others. Default: 300.")
@click.option("--once", is_flag=True, help="End when the day has ended, as --json does.")
@click.option("--linger", "linger_s", default=10.0, help="Serve others so long then. Default: 10.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for NODE.json, the result.")
@click.option("--seed", type=int, help="Accepted by every verb; real processes are not repeatable.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object when the day ended.")
def node(
    config: Path,
    wait_s: float,
    once: bool,
    linger_s: float,
    out: Path | None,
    seed: int | None,  # noqa: ARG001 - part of the contract
    as_json: bool,
) -> int:
    """Run one process of a deployment that `veilgrid init` has scaffolded.

    CONFIG.toml is its file, DIR/nodes/NODE.toml. It waits for the others, plans the day with them
    and goes on serving them. Killed and started again, it goes on from its journal. SIGTERM ends
    it in order; SIGHUP makes it take up new keys.

    Examples:
      veilgrid node my-grid/nodes/validator-1.toml

      veilgrid node my-grid/nodes/site-1.toml --once --out plans
    """
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    logging.getLogger("veilgrid.node.transport").setLevel(logging.ERROR)
    _check(wait_s, linger_s)
    settings = read_settings(config)
    from veilgrid.cli._part import work_of

    work = work_of(settings)
    tale = _Tale(work.part, as_json)

    async def main() -> int:
        manners = Manners(
            wait_s=wait_s,
            linger_s=linger_s,
            stays=not (once or as_json),
            tell=tale.line,
            on_outcome=tale.on_outcome,
        )
        return 0 if await serve(settings, work.part, manners) else 1

    code = run_guarded(until_fatal(main()))
    if code not in (0, 1):
        return code
    if work.part.is_stop(tale.last):
        raise RunAborted(tale.last.reason, ", ".join(tale.last.culprits) or None)
    if code == 1:
        tale.line("stopped before the day had ended")
    found = _found(settings, work.part.day, tale.last, work.plan() if code == 0 else [])
    if out is not None and code == 0:
        out.mkdir(parents=True, exist_ok=True)
        path = out / f"{settings.node}.json"
        write_private(path, json.dumps(found, indent=1).encode() + b"\n")
        tale.line(f"wrote {path}")
        for name, octets in work.files().items():
            beside = out / f"{settings.node}.{name}"
            write_private(beside, octets)
            tale.line(f"wrote {beside}")
    if as_json:
        click.echo(json.dumps(found))
    return code or (0 if _is_wanted(tale.last) else 1)


def _check(wait_s: float, linger_s: float) -> None:
    given = (("--wait", wait_s), ("--linger", linger_s))
    findings = [
        Finding(name, f"is {value:g}", "0 … 86400 seconds")
        for name, value in given
        if not 0 <= value <= 86_400
    ]
    if findings:
        raise InputError(findings)


def _is_wanted(outcome: Any) -> bool:
    if isinstance(outcome, DayResult):
        return outcome.status == "converged" and outcome.is_ac_passed
    return _is_sound(outcome) and _status(outcome) in ("closed", "converged")


def _is_sound(outcome: Any) -> bool:
    """Whether the AC power flow passes the plan of a sealed day, if there is one."""
    certificate = getattr(outcome, "public", {}).get("certificate")
    return not certificate or is_sound(certificate.get("electrical", {}))


def _status(outcome: Any) -> str:
    """Return how the day ended: as a sealed day opens it, else only that it was closed."""
    if outcome is None:
        return "stopped"
    return str(getattr(outcome, "public", {}).get("status", "closed"))


def _found(
    settings: Settings, day: str, outcome: Any, plan: list[dict[str, Any]]
) -> dict[str, Any]:
    head = {"node": settings.me.node, "role": settings.me.role, "day": day}
    if isinstance(outcome, DayResult):
        return {**head, **result_told(outcome)}
    told = getattr(outcome, "public", {})
    more = {"unrecorded": told["unrecorded"]} if "unrecorded" in told else {}
    return {**head, "status": _status(outcome), "sites": plan, **more}


class _Tale:
    """What a process tells its owner while it runs."""

    def __init__(self, part: Part, as_json: bool) -> None:
        self._part, self._as_json = part, as_json
        self.last: Any = None

    def line(self, text: str) -> None:
        """Print one line at once."""
        click.echo(text, err=self._as_json)
        (sys.stderr if self._as_json else sys.stdout).flush()

    def on_outcome(self, outcome: Any) -> None:
        """Take note of an outcome."""
        if isinstance(outcome, StepEnded):
            self.line(f"step {outcome.step} ({outcome.kind}): primal residual {outcome.primal:.1e}")
            return
        if self._part.is_stop(outcome):
            self.last = outcome
            self.line(f"the day has ended without a result: {outcome.reason}")
            return
        if not self._part.is_end(outcome):
            return
        self.last = outcome
        if isinstance(outcome, DayResult):
            cost = "unknown" if outcome.cost is None else f"{outcome.cost:,.2f}"
            self.line(f"{outcome.status}: cost {cost}, {outcome.iterations} iterations")
        else:
            self.line("the day has ended")
            absent = getattr(outcome, "public", {}).get("unrecorded")
            if absent:
                self.line(f"the ledger has no record of {', '.join(absent)}")
            if not _is_sound(outcome):
                self.line("the AC power flow does not pass its plan: it must not be carried out")
