"""Settings files: frozen structures from TOML, every unknown or wrong key a finding."""

import tomllib
from collections.abc import Iterator
from typing import Any, TypeVar, get_args, get_origin

import msgspec

from veilgrid.errors import ConfigError, Finding

T = TypeVar("T", bound=msgspec.Struct)


def load(text: str, kind: type[T], name: str = "settings") -> T:
    """Read settings of one kind from TOML text.

    Parameters
    ----------
    text
        Content of the file.
    kind
        A frozen ``msgspec.Struct``; its fields are the keys that may appear. A field may be
        another such structure (a table) or a tuple of them (a list of tables).
    name
        Of the file, for findings.

    Raises
    ------
    ConfigError
        Every unknown or missing key and every value that does not fit, in nested tables, too.
    """
    try:
        found: dict[str, Any] = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        problem = f"is no TOML: {error}"
        raise ConfigError([Finding(name, problem, "texts stand in double quotes")]) from None
    findings = list(_findings(found, kind, name))
    if findings:
        raise ConfigError(findings)
    try:
        return msgspec.convert(found, kind)
    except msgspec.ValidationError as error:
        raise ConfigError([Finding(name, str(error))]) from None


def _findings(table: dict[str, Any], kind: type[msgspec.Struct], where: str) -> Iterator[Finding]:
    known = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    for key in table:
        if key not in known:
            advice = f"known keys: {', '.join(sorted(known))}"
            yield Finding(f"{where}, key {key}", "is unknown", advice)
    for key, field in known.items():
        here = f"{where}, key {key}"
        if key not in table:
            if field.required:
                yield Finding(here, "is missing")
            continue
        value, inner, many = table[key], _table(field.type), _tables(field.type)
        if inner is not None and isinstance(value, dict):
            yield from _findings(value, inner, here)
        elif many is not None and isinstance(value, list):
            for number, one in enumerate(value, 1):
                if isinstance(one, dict):
                    yield from _findings(one, many, f"{here}, entry {number}")
                else:
                    yield Finding(f"{here}, entry {number}", "is no table")
        else:
            try:
                msgspec.convert(value, field.type)
            except msgspec.ValidationError as error:
                yield Finding(here, str(error))


def _table(kind: Any) -> type[msgspec.Struct] | None:
    return kind if isinstance(kind, type) and issubclass(kind, msgspec.Struct) else None


def _tables(kind: Any) -> type[msgspec.Struct] | None:
    arguments = get_args(kind)
    return _table(arguments[0]) if get_origin(kind) in (tuple, list) and arguments else None
