"""What an operator notes about a user, a tenant or an application for other services to read: names with plain values.

They are checked when written, so that whatever they end up in (a token, a header, an answer) stays small and well-formed.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any, Final

from identity.errors import VALIDATION, Refused

MAX_BYTES: Final = 4096
NAME: Final = re.compile(r"[a-z0-9_]{1,64}", re.ASCII)
_UNFIT: Final = VALIDATION.saying(
    "Attributes are names of a-z, 0-9 and _ with text, a number, true, false or a list of texts; 4 KiB in all"
)
_EXACT: Final = 2**53


def checked(attributes: Mapping[str, Any], *, field: str = "attributes") -> str:
    """The attributes as they are stored: JSON of at most `MAX_BYTES`. Raises Refused(VALIDATION)."""
    for name, value in attributes.items():
        if not NAME.fullmatch(name) or not _is_plain(value):
            raise Refused(_UNFIT, field=field, detail=f"attribute {name[:64]!a}")
    text = json.dumps(attributes, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    if len(text.encode()) > MAX_BYTES:
        raise Refused(_UNFIT, field=field, detail="over 4 KiB")
    return text


def read(text: str | None) -> dict[str, Any]:
    """Stored attributes."""
    found: dict[str, Any] = json.loads(text) if text and text != "{}" else {}
    return found


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(isinstance(one, str) and _is_text(one) for one in value)
    if isinstance(value, bool):
        return True
    # What a double cannot hold, readers in other languages would round.
    if isinstance(value, int):
        return abs(value) <= _EXACT
    return _is_text(value) if isinstance(value, str) else isinstance(value, float) and math.isfinite(value)


def _is_text(text: str) -> bool:
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)
