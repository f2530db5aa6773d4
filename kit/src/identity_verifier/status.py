"""Status lists (IETF draft Token Status List): two bits for each login or secret, in one document for all of them.

A list is believed if a published key signed it, if it is the list that was asked for, and if its own times hold. It is unpacked within
bounds: a list of a few hundred bytes must not become gigabytes.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from identity_verifier.jose import Unfit, un64

VALID: Final = 0
INVALID: Final = 1
CHANGED: Final = 3
MAX_DOCUMENT_BYTES: Final = 4 * 1024 * 1024
_MAX_UNPACKED_BYTES: Final = 4 * 1024 * 1024  # 2^24 entries, sixteen times what the issuer puts into one list
_LEEWAY_SECONDS: Final = 30
_PATH: Final = "/.well-known/status-lists/"


@dataclass(frozen=True, slots=True)
class Reference:
    """Where the status of a token stands."""

    uri: str
    index: int


@dataclass(frozen=True, slots=True)
class StatusList:
    """A list as it was signed. `ttl` is None where it does not say how long it may be kept."""

    uri: str
    issued_at: int
    expires_at: int | None
    ttl: int | None
    bits: int
    entries: bytes = field(repr=False)
    revoked_tokens: frozenset[str] = field(repr=False, default=frozenset())

    def status(self, index: int) -> int:
        """The value of an entry; INVALID for one that the list does not have."""
        per_byte = 8 // self.bits
        place, rest = divmod(index, per_byte)
        if place >= len(self.entries):
            return INVALID
        return (self.entries[place] >> (rest * self.bits)) & ((1 << self.bits) - 1)


def reference_of(claims: Mapping[str, Any], *, issuer: str) -> Reference | None:
    """Where a token says that its status stands; None for an old token, which says nothing.

    Raises Unfit for what is no reference, and for one that does not lead to the issuer.
    """
    status = claims.get("status")
    if status is None:
        return None
    listed = status.get("status_list") if isinstance(status, dict) else None
    if not isinstance(listed, dict):
        raise Unfit("status: no reference to a list")
    index, uri = listed.get("idx"), listed.get("uri")
    if type(index) is not int or index < 0 or not isinstance(uri, str):
        raise Unfit("status: no reference to a list")
    if not is_under(issuer, uri):
        raise Unfit("status: the list is not the issuer's")
    return Reference(uri, index)


def is_under(issuer: str, uri: str) -> bool:
    """Whether `uri` is a status list of the issuer: its own address, and one plain word after it."""
    start = issuer.rstrip("/") + _PATH
    name = uri[len(start) :]
    return (
        uri.startswith(start)
        and 0 < len(name) <= 128
        and name.isascii()
        and name.replace("-", "").replace("_", "").isalnum()
    )


def read(claims: Mapping[str, Any], *, uri: str, now: float) -> StatusList:
    """The list that signed claims hold. Raises Unfit for another list than that of `uri`, or one whose time is over."""
    if claims.get("sub") != uri:
        raise Unfit("the list is another one: sub is not its address")
    issued, expires, ttl = (_whole(claims, name) for name in ("iat", "exp", "ttl"))
    if issued is None or issued > now + _LEEWAY_SECONDS:
        raise Unfit("the list was made in the future, or says nothing of when")
    if expires is not None and expires <= now - _LEEWAY_SECONDS:
        raise Unfit("the list has expired")
    listed = claims.get("status_list")
    bits = listed.get("bits") if isinstance(listed, dict) else None
    packed = listed.get("lst") if isinstance(listed, dict) else None
    if type(bits) is not int or bits not in (1, 2, 4, 8) or not isinstance(packed, str):
        raise Unfit("the list has no entries")
    revoked = claims.get("revoked_tokens", [])
    if not isinstance(revoked, list) or not all(isinstance(each, str) for each in revoked):
        raise Unfit("revoked_tokens is no list of ids")
    return StatusList(uri, issued, expires, ttl, bits, _unpacked(packed), frozenset(revoked))


def _unpacked(packed: str) -> bytes:
    unpacking = zlib.decompressobj()
    try:
        entries = unpacking.decompress(un64(packed), _MAX_UNPACKED_BYTES)
    except zlib.error as exc:
        raise Unfit("the list is not zlib") from exc
    if unpacking.unconsumed_tail:
        raise Unfit(f"the list is larger than {_MAX_UNPACKED_BYTES} bytes")
    if not unpacking.eof:
        raise Unfit("the list was cut off")
    return entries


def _whole(claims: Mapping[str, Any], name: str) -> int | None:
    value = claims.get(name)
    if value is None:
        return None
    if type(value) is not int or value < 0:
        raise Unfit(f"{name} of the list is no number")
    return value
