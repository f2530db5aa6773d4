"""What the forms of the console's pages read: names apart by blanks, numbers, lines, JSON. What cannot be read is refused at its field."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final

from identity.canonical import decode_object
from identity.errors import STALE, VALIDATION, Refused
from identity.wire.dialects.console_dialect import Visit

_SEPARATORS: Final = re.compile(r"[\s,]+")
_LONGEST_JSON: Final = 16_384


def words(visit: Visit, name: str) -> Sequence[str]:
    """Names, apart by blanks or commas."""
    return [one for one in _SEPARATORS.split(visit.typed(name)) if one]


def version(visit: Visit) -> frozenset[int]:
    """The version that the form showed."""
    text = visit.typed("version", most=18)
    return frozenset([int(text)] if text.isascii() and text.isdigit() else [])


def number(visit: Visit, name: str, *, most: int = 31_536_000) -> int | None:
    """A whole number; None where nothing was typed. Raises Refused(VALIDATION)."""
    text = visit.typed(name, most=18)
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or int(text) > most:
        raise Refused(VALIDATION.saying(f"A whole number up to {most} belongs there"), field=name)
    return int(text)


def table(visit: Visit, name: str) -> dict[str, str]:
    """`name=value` on each line. Raises Refused(VALIDATION)."""
    found = {}
    for line in visit.typed(name).splitlines():
        key, is_said, value = (part.strip() for part in line.partition("="))
        if line.strip() and not (key and is_said and value):
            raise Refused(VALIDATION.saying("Each line is a name, =, and a value"), field=name)
        if line.strip():
            found[key] = value
    return found


def json_of(visit: Visit, name: str) -> dict[str, Any] | None:
    """A JSON object; None where nothing was typed. Raises Refused(VALIDATION)."""
    text = visit.typed(name, most=_LONGEST_JSON)
    if not text:
        return None
    try:
        return decode_object(text.encode())
    except ValueError as exc:
        raise Refused(VALIDATION.saying("A JSON object belongs there"), field=name, cause=exc) from exc


def spelled(value: Any) -> str:
    """A JSON value for people to read and change."""
    return json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True) if value else ""


def typed_again(visit: Visit, fault: dict[str, Any] | None) -> dict[str, str]:
    """What was typed into the form that was refused; empty text for the rest."""
    return defaultdict(str, visit.call.body if fault else {})


def is_stale(fault: dict[str, Any] | None) -> bool:
    """Whether the form was refused because somebody else was faster."""
    return fault is not None and fault["code"] == STALE.code
