"""Settings files: frozen structures from TOML, every unknown or wrong key a finding."""

import tomllib
from typing import Any, TypeVar

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
        A frozen ``msgspec.Struct``; its fields are the keys that may appear.
    name
        Of the file, for findings.

    Raises
    ------
    ConfigError
        Every unknown key, or the first value that does not fit.
    """
    try:
        found: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([Finding(name, f"is no TOML: {error}")]) from None
    known = {field.encode_name for field in msgspec.structs.fields(kind)}
    unknown = [
        Finding(f"{name}, key {key}", "is unknown", f"known keys: {', '.join(sorted(known))}")
        for key in found
        if key not in known
    ]
    if unknown:
        raise ConfigError(unknown)
    try:
        return msgspec.convert(found, kind)
    except msgspec.ValidationError as error:
        raise ConfigError([Finding(name, str(error))]) from None
