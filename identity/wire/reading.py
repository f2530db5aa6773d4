"""The one strict reader of what clients send: JSON, forms, query strings, headers.

Everything that two parsers could read in two ways is refused here, before any of our code looks at it: duplicate keys and
parameters, NaN, lone surrogates, NUL, deep nesting, other encodings.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final, NoReturn
from urllib.parse import parse_qsl

from identity.errors import MALFORMED, UNSUPPORTED_FORM, UNSUPPORTED_MEDIA, Refused

MAX_DEPTH: Final = 20
_MEDIA: Final = re.compile(r'\s*([!#-\'*+.^_`|~\w/-]+)\s*((?:;\s*[\w-]+\s*=\s*("[^"\\]*"|[^\s;"]*)\s*)*)', re.ASCII)
_CHARSET: Final = re.compile(r';\s*charset\s*=\s*"?([^\s;"]*)"?', re.ASCII | re.IGNORECASE)


def read_json(raw: bytes, content_type: str) -> dict[str, Any]:
    """The JSON object in `raw`. Raises Refused(UNSUPPORTED_MEDIA) or Refused(MALFORMED)."""
    if content_type != "application/json" and not _is_media(content_type, "application/json"):
        raise Refused(UNSUPPORTED_MEDIA, detail="content type")
    try:
        value = _decode(raw.decode())
    except (ValueError, RecursionError) as exc:
        raise Refused(MALFORMED, detail=type(exc).__name__) from exc
    if not isinstance(value, dict):
        raise Refused(MALFORMED, detail="not an object")
    # Only escapes can smuggle what UTF-8 and JSON themselves forbid, and only many brackets can nest deeply.
    if b"\\u" in raw or raw.count(b"{") + raw.count(b"[") > MAX_DEPTH:
        _inspect(value, 1)
    return value


def read_form(raw: bytes, content_type: str) -> dict[str, str]:
    """The parameters of a form, none of them twice (RFC 6749 section 3.2). Raises Refused."""
    if not _is_media(content_type, "application/x-www-form-urlencoded"):
        raise Refused(UNSUPPORTED_FORM, detail="content type")
    try:
        text = raw.decode("ascii")
    except UnicodeDecodeError as exc:
        raise Refused(MALFORMED.saying("The form is not URL-encoded ASCII"), detail="encoding") from exc
    pairs = _pairs(text)
    if len({name for name, _ in pairs}) != len(pairs):
        raise Refused(MALFORMED.saying("A parameter must not be sent twice"), detail="duplicate parameter")
    return dict(pairs)


def read_query(text: str) -> dict[str, list[str]]:
    """The parameters of a query string, each with its values in order. Raises Refused(MALFORMED)."""
    values: dict[str, list[str]] = {}
    for name, value in _pairs(text) if text else ():
        values.setdefault(name, []).append(value)
    return values


def _pairs(text: str) -> list[tuple[str, str]]:
    try:
        pairs = parse_qsl(text, keep_blank_values=True, strict_parsing=bool(text), errors="strict", max_num_fields=100)
    except ValueError as exc:
        raise Refused(MALFORMED.saying("The parameters are not well-formed"), detail="parameters") from exc
    if any("\0" in name or "\0" in value for name, value in pairs):
        raise Refused(MALFORMED.saying("The parameters are not well-formed"), detail="NUL")
    return pairs


def _is_media(content_type: str, expected: str) -> bool:
    media = _MEDIA.fullmatch(content_type)
    if media is None or media[1].lower() != expected:
        return False
    charset = _CHARSET.search(media[2])
    return charset is None or charset[1].lower() in ("utf-8", "utf8")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("duplicate key")
    return value


def _reject(_constant: str) -> NoReturn:
    raise ValueError("NaN or Infinity")


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError("a number without end")
    return number


def _inspect(value: Any, depth: int) -> None:
    """Refuse what is too deep or holds text that is no text."""
    if depth > MAX_DEPTH:
        raise Refused(MALFORMED, detail="nested too deep")
    if isinstance(value, str):
        if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
            raise Refused(MALFORMED, detail="NUL or lone surrogate")
    elif isinstance(value, dict):
        for name, member in value.items():
            _inspect(name, depth)
            _inspect(member, depth + isinstance(member, dict | list))
    elif isinstance(value, list):
        for member in value:
            _inspect(member, depth + isinstance(member, dict | list))


_decode: Final = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_reject, parse_float=_finite).decode
