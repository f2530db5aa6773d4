"""The one spelling of a mail address, an alias, an id, an origin, and the one reading of a JSON object.

Whatever people type is brought to this form before it is looked up, counted, compared or stored; nothing downstream sees
another. What has no safe form is refused: two spellings that somebody's mail server may tell apart are never merged.
"""

from __future__ import annotations

import base64
import json
import re
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from typing import Any, Final, NoReturn

import idna

from identity.errors import VALIDATION, Refused

ADDRESS_MAX: Final = 254
MAX_DEPTH: Final = 20
_LOCAL: Final = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?:\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*", re.ASCII)
_LABEL: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)
_ALIAS: Final = re.compile(r"[a-z0-9][a-z0-9._-]{1,62}[a-z0-9]", re.ASCII)
_UUID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)
_ORIGIN: Final = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]{0,31})://(?P<host>[a-z0-9_](?:[a-z0-9._-]{0,252})|\[[0-9a-f:.]{2,45}\])(?::(?P<port>[0-9]{1,5}))?",
    re.ASCII | re.IGNORECASE,
)
_DEFAULT_PORTS: Final = {"http": 80, "https": 443, "ws": 80, "wss": 443, "ftp": 21}
_WITH_PORT: Final = re.compile(r"([0-9.]+):[0-9]{1,5}|\[([^\]]+)\](?::[0-9]{1,5})?", re.ASCII)
_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9._:-]{0,62}[a-z0-9])?", re.ASCII)


def canonical_address(text: str) -> str | None:
    """The one spelling of a mail address (lower case, ASCII domain), or None if it is none that we mail to.

    Local parts are plain ASCII without quotes (RFC 5321 section 4.1.2 dot-string); domains may be internationalised (RFC 5891).
    """
    local, at, domain = text.rpartition("@")
    if not at or len(text) > ADDRESS_MAX or len(local) > 64 or not _LOCAL.fullmatch(local):
        return None
    ascii_domain = _ascii_domain(domain.removesuffix("."))
    address = f"{local.lower()}@{ascii_domain}"
    return address if ascii_domain and len(address) <= ADDRESS_MAX else None


def get_address(text: str, *, field: str = "email") -> str:
    """`canonical_address`, or Refused(VALIDATION)."""
    address = canonical_address(text)
    if address is None:
        raise Refused(VALIDATION.saying("That is not a mail address"), field=field)
    return address


def canonical_alias(text: str) -> str | None:
    """The one spelling of an alias: 3 to 64 of a-z, 0-9, dot, dash and underscore; or None."""
    alias = text.strip().lower()
    return alias if text.isascii() and _ALIAS.fullmatch(alias) else None


def get_alias(text: str, *, field: str = "alias") -> str:
    """`canonical_alias`, or Refused(VALIDATION)."""
    alias = canonical_alias(text)
    if alias is None:
        raise Refused(
            VALIDATION.saying("An alias has 3 to 64 letters, digits, dots, dashes or underscores"), field=field
        )
    return alias


def canonical_identifier(text: str) -> str:
    """What an attempt to sign in as `text` is counted under: every spelling of one account is one identifier."""
    return canonical_address(text) or canonical_alias(text) or text.strip().lower()[:ADDRESS_MAX]


def is_name(text: str) -> bool:
    """Whether `text` may name a role, group, scope or tenant: 1 to 64 of a-z, 0-9 and `._:-`, not at the ends."""
    return bool(_NAME.fullmatch(text))


def get_names(names: list[str] | tuple[str, ...], *, field: str) -> tuple[str, ...]:
    """`names` sorted and without repetition, or Refused(VALIDATION)."""
    if not all(is_name(name) for name in names):
        raise Refused(VALIDATION.saying(f"A name in {field} needs 1 to 64 of a-z, 0-9 and ._:-"), field=field)
    return tuple(sorted(set(names)))


def canonical_id(text: str) -> str | None:
    """A UUID in its one spelling, or None."""
    lowered = text.lower()
    return lowered if _UUID.fullmatch(lowered) else None


def canonical_origin(text: str) -> str | None:
    """The one spelling of `scheme://host[:port]` (RFC 6454 section 6.1), or None if it is none: lower case, without a default port."""
    found = _ORIGIN.fullmatch(text)
    if found is None:
        return None
    scheme, host, port = found["scheme"].lower(), found["host"].lower(), found["port"]
    if host.startswith("["):
        try:
            host = f"[{IPv6Address(host[1:-1]).compressed}]"
        except ValueError:
            return None
    if port is None or (port.isdecimal() and _DEFAULT_PORTS.get(scheme) == int(port)):
        return f"{scheme}://{host}"
    return f"{scheme}://{host}:{int(port)}" if int(port) <= 65_535 else None


def canonical_audience(text: str) -> str | None:
    """The one spelling of an audience, or None: 1 to 200 printable ASCII characters. What is an origin is spelled as one."""
    if not 1 <= len(text) <= 200 or not text.isascii() or not text.isprintable() or " " in text:
        return None
    return canonical_origin(text.removesuffix("/")) or text


def _ascii_domain(domain: str) -> str | None:
    try:
        encoded = domain.lower() if domain.isascii() else idna.encode(domain, strict=True).decode("ascii")
    except (idna.IDNAError, UnicodeError):
        return None
    labels = encoded.split(".")
    fit = len(labels) >= 2 or encoded == "localhost"
    return encoded if fit and len(encoded) <= 253 and all(_LABEL.fullmatch(label) for label in labels) else None


@lru_cache(maxsize=4096)
def canonical_client(text: str) -> str | None:
    """The one spelling of a client's IP address, or None for what is none: limits, lockouts, `cidrs`, sessions, audit and logs see it.

    IPv4-mapped IPv6 is IPv4; a zone says nothing to anybody but that host; a port is dropped where it cannot be taken for the address.
    """
    found = _WITH_PORT.fullmatch(text.strip())
    try:
        parsed = ip_address((found[1] or found[2] if found else text.strip()).partition("%")[0])
    except ValueError:
        return None
    mapped = parsed.ipv4_mapped if isinstance(parsed, IPv6Address) else None
    return str(mapped or parsed)


def get_client(text: str, *, field: str = "address") -> str:
    """`canonical_client`, or Refused(VALIDATION)."""
    address = canonical_client(text)
    if address is None:
        raise Refused(VALIDATION.saying("That is not an IP address"), field=field)
    return address


def encode_base64url(raw: bytes) -> str:
    """`raw` in base64url without padding (RFC 7515 section 2)."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def decode_base64url(text: str) -> bytes | None:
    """Decode base64url if `text` is its one canonical spelling, without padding or stray bits; else None."""
    try:
        raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except ValueError:
        return None
    return raw if text and encode_base64url(raw) == text else None


def decode_object(raw: bytes) -> dict[str, Any]:
    """The JSON object in `raw`, where every parser reads the same one.

    Raises ValueError, in constant words, for everything else: duplicate keys, NaN, numbers without end, lone surrogates, NUL, nesting
    deeper than 20, another encoding than UTF-8.
    """
    try:
        value = _decode(raw.decode())
    except (ValueError, RecursionError) as exc:
        raise ValueError(f"not one JSON value: {type(exc).__name__}") from exc
    if not isinstance(value, dict):
        raise ValueError("not an object")  # noqa: TRY004 -- a fault of what was sent, like the others
    # Only escapes can smuggle what UTF-8 and JSON themselves forbid, and only many brackets can nest deeply.
    if b"\\u" in raw or raw.count(b"{") + raw.count(b"[") > MAX_DEPTH:
        _inspect(value, 1)
    return value


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
    """Raise ValueError for what is too deep or holds text that is no text."""
    if depth > MAX_DEPTH:
        raise ValueError("nested too deep")
    if isinstance(value, str):
        if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
            raise ValueError("NUL or lone surrogate")
    elif isinstance(value, dict):
        for name, member in value.items():
            _inspect(name, depth)
            _inspect(member, depth + isinstance(member, dict | list))
    elif isinstance(value, list):
        for member in value:
            _inspect(member, depth + isinstance(member, dict | list))


_decode: Final = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_reject, parse_float=_finite).decode
