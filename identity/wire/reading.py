"""The one strict reader of what clients send: JSON, forms, query strings, headers.

Everything that two parsers could read in two ways is refused here, before any of our code looks at it: duplicate keys and
parameters, NaN, lone surrogates, NUL, deep nesting, other encodings.
"""

from __future__ import annotations

import re
from typing import Any, Final
from urllib.parse import parse_qsl

from identity.canonical import decode_object
from identity.errors import MALFORMED, UNSUPPORTED_FORM, UNSUPPORTED_MEDIA, Refused

_MEDIA: Final = re.compile(
    r'\s*([!#-\'*+.^_`|~\w/-]+)\s*((?:;\s*(?:[\w-]+\s*=\s*("[^"\\]*"|[^\s;"]*)\s*)?)*)', re.ASCII
)
_UTF8: Final = ("utf-8", "utf8")
_CHARSET: Final = re.compile(r';\s*charset\s*=\s*"?([^\s;"]*)"?', re.ASCII | re.IGNORECASE)


def read_json(raw: bytes, content_type: str) -> dict[str, Any]:
    """The JSON object in `raw`. Raises Refused(UNSUPPORTED_MEDIA) or Refused(MALFORMED)."""
    if content_type != "application/json" and not _is_media(content_type, "application/json"):
        raise Refused(UNSUPPORTED_MEDIA, detail="content type")
    try:
        return decode_object(raw)
    except ValueError as exc:
        raise Refused(MALFORMED, detail=str(exc)) from exc


def read_lines(raw: bytes, content_type: str) -> list[Any]:
    """The JSON in each line of NDJSON; a line that holds none gives its Refused instead, so that one does not spoil the rest."""
    if not _is_media(content_type, "application/x-ndjson"):
        raise Refused(UNSUPPORTED_MEDIA.saying("Send application/x-ndjson in UTF-8"), detail="content type")
    return [_read_line(line) for line in raw.split(b"\n") if line.strip()]


def _read_line(line: bytes) -> Any:
    try:
        return decode_object(line)
    except ValueError as exc:
        return Refused(MALFORMED.saying("The line is not a JSON object"), detail=str(exc))


def read_form(raw: bytes, content_type: str) -> dict[str, str]:
    """The parameters of a form, none of them twice (RFC 6749 section 3.2). Raises Refused."""
    # Whatever charset it claims of these, ASCII is read alike in it, and the body is nothing else.
    if not _is_media(
        content_type, "application/x-www-form-urlencoded", charsets=(*_UTF8, "us-ascii", "iso-8859-1", "latin1")
    ):
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
    # An empty part, as in `a=1&&b=2&`, is nothing.
    text = "&".join(part for part in text.split("&") if part)
    try:
        pairs = parse_qsl(text, keep_blank_values=True, strict_parsing=bool(text), errors="strict", max_num_fields=100)
    except ValueError as exc:
        raise Refused(MALFORMED.saying("The parameters are not well-formed"), detail="parameters") from exc
    if any("\0" in name or "\0" in value for name, value in pairs):
        raise Refused(MALFORMED.saying("The parameters are not well-formed"), detail="NUL")
    return pairs


def _is_media(content_type: str, expected: str, *, charsets: tuple[str, ...] = _UTF8) -> bool:
    media = _MEDIA.fullmatch(content_type)
    if media is None or media[1].lower() != expected:
        return False
    charset = _CHARSET.search(media[2])
    return charset is None or charset[1].lower() in charsets
