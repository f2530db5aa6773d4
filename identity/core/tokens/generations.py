"""Refresh tokens as they are written: they are not rows.

Generation n is an HMAC over the session's seed and n, and the row keeps only n and when it turned. So a retry gets the identical
successor, and a token of the past is recognised by its number.
"""

from __future__ import annotations

import hmac
import uuid
from typing import Final

from identity.instruments import opaque
from identity.instruments.opaque import Kind, Secret
from identity.runtime import Runtime

_REFRESH_BYTES: Final = 40
_MAC_BYTES: Final = 20


def mint(rt: Runtime, session_id: str, seed: bytes | None, generation: int) -> Secret:
    """The refresh token of one generation of a session; always the same."""
    head = uuid.UUID(session_id).bytes + generation.to_bytes(4)
    mac = hmac.digest(rt.ring.vault.derive("refresh tokens"), head + (seed or b""), "sha256")[:_MAC_BYTES]
    return opaque.encode(Kind.REFRESH, head + mac)


def parse(token: str) -> tuple[str, int] | None:
    """The session and the generation that a refresh token names, or None. Whether it is genuine, `mint` tells."""
    payload = opaque.decode(Kind.REFRESH, token, _REFRESH_BYTES)
    return None if payload is None else (str(uuid.UUID(bytes=payload[:16])), int.from_bytes(payload[16:20]))
