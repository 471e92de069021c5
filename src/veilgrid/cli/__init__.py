"""The one command ``veilgrid``: parse, call, print, exit."""

import importlib
import os
import sys
from contextlib import suppress
from typing import Any

import click

from veilgrid.cli._interrupt import blocked
from veilgrid.errors import InvariantError, SetupError, VeilgridError

_VERBS = {
    "run": "veilgrid.cli._day:run",
    "compare": "veilgrid.cli._day:compare",
    "attack": "veilgrid.cli._attack:attack",
    "audit": "veilgrid.cli._audit:audit",
    "report": "veilgrid.cli._day:report",
    "import": "veilgrid.cli._import:import_",
    "aggregate": "veilgrid.cli._aggregate:aggregate",
    "sensitivity": "veilgrid.cli._sensitivity:sensitivity",
    "capacity": "veilgrid.cli._capacity:capacity",
    "market": "veilgrid.cli._market:market",
    "bench": "veilgrid.cli._bench:bench",
    "simulate": "veilgrid.cli._simulate:simulate",
    "up": "veilgrid.cli._up:up",
    "node": "veilgrid.cli._node:node",
    "verify": "veilgrid.cli._verify:verify",
    "init": "veilgrid.cli._init:init",
    "key": "veilgrid.cli._key:key",
    "serve": "veilgrid.cli._serve:serve",
}
"""Where each verb lives; loaded when it is called, so that help and errors come at once."""


class _Verbs(click.Group):
    """A group that imports a verb only when it is needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _VERBS:
            return None
        module, _, attribute = _VERBS[cmd_name].partition(":")
        with blocked():  # Threads that libraries start on import must leave Ctrl-C to us.
            command: click.Command = getattr(importlib.import_module(module), attribute)
        return command


@click.group(cls=_Verbs)
@click.version_option(package_name="veilgrid")
def cli() -> None:
    """Plan and settle distributed energy resources together without handing over data.

    Start with: veilgrid run. It plans the bundled day and prints what came out.
    """


def main(arguments: list[str] | None = None) -> None:
    """Run the command; every error of ours becomes one message and its exit code."""
    try:
        result: Any = cli.main(args=arguments, standalone_mode=False)
    except click.exceptions.Abort:
        click.echo("interrupted; nothing was written", err=True)
        sys.exit(1)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except VeilgridError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except InvariantError as error:
        click.echo(f"bug in veilgrid: {error}; please report it with the command", err=True)
        sys.exit(70)
    except BrokenPipeError:
        _drop_output()
        sys.exit(1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        click.echo(f"error: {where}{error.strerror or error}", err=True)
        _drop_output()
        sys.exit(SetupError.exit_code)
    sys.exit(result if isinstance(result, int) else 0)


def _drop_output() -> None:
    """Let what is left for a stdout that takes nothing more go nowhere, not into a traceback."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
