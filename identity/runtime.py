"""`Runtime`: the opened service, handed down as one value.

It bundles time, chance and the way out by mail with the opened database, the key ring, the limiter and the other instruments. `opening`
builds it; the domain never finds it in a global.
"""

from __future__ import annotations

import time
import uuid
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from identity.ambient import Clock, Entropy, Mailer, Origin
from identity.instruments.asking import Asking
from identity.instruments.counts import Counts
from identity.instruments.epochs import Memory
from identity.instruments.hashing import Passwords
from identity.instruments.issuers import Issuers
from identity.instruments.key_shapes import KeyShapes
from identity.instruments.keyring import Keyring
from identity.instruments.limits import Limiter
from identity.instruments.refusals import Explanations
from identity.instruments.statuslists import StatusLists
from identity.instruments.strangers import Strangers
from identity.instruments.tallies import Tallies
from identity.instruments.usage import Usage
from identity.settings import Settings
from identity.storage import Database, Unit


@dataclass(slots=True)
class Runtime:
    """One opened service: its settings and the parts that they describe."""

    settings: Settings
    clock: Clock
    entropy: Entropy
    database: Database
    mailer: Mailer
    ring: Keyring
    passwords: Passwords
    limiter: Limiter
    usage: Usage
    explanations: Explanations
    memory: Memory
    #: The tokens that are given again. Apart from `memory`: whoever asks for many kinds pushes out nobody's login.
    issued: Memory
    status_lists: StatusLists
    issuers: Issuers
    key_shapes: KeyShapes
    strangers: Strangers = field(default_factory=Strangers)
    asking: Asking = field(default_factory=Asking)
    tallies: Tallies = field(default_factory=Tallies)
    counts: Counts = field(default_factory=Counts)
    given_again: int = 0  # Answers, since `metrics.publish` last asked; without a lock, so about.
    standard_client: str = ""
    owed: deque[Any] = field(default_factory=lambda: deque(maxlen=10_000))  # Guesses to give back, see `attempts`.
    tried_decoys: dict[tuple[str, str], None] = field(
        default_factory=dict
    )  # Whose owners are to hear of it, see `decoys`.
    writes_until: float = 0.0  # On the monotonic clock: until when a write that was tried is proof enough.

    def unit(self, origin: Origin, *, lasting: bool = True) -> Unit:
        """One write transaction; `lasting` False: a crash of host or database server may undo it, no death of ours. See `storage.Unit`."""
        return self.database.unit(self.clock.now(), origin, lasting=lasting)

    def close(self) -> None:
        """Give every connection and file back."""
        self.database.close()
        self.limiter.close()
        self.issuers.close()

    def new_id(self) -> str:
        """A fresh UUIDv7 (RFC 9562 section 5.7): ordered by time, so that indexes grow at their end; 74 random bits."""
        millis = int(self.clock.now().timestamp() * 1000)
        tail = int.from_bytes(self.entropy.bytes(10)) & ((1 << 80) - 1)
        value = (millis & ((1 << 48) - 1)) << 80 | tail
        value = value & ~(0xF << 76) | 0x7 << 76
        value = value & ~(0x3 << 62) | 0x2 << 62
        return str(uuid.UUID(int=value))

    def deadline(self, seconds: float) -> float:
        """A point `seconds` ahead on the monotonic clock, which no operator can turn back."""
        return time.monotonic() + seconds

    def pause(self, seconds: float) -> None:
        """Let others go first."""
        time.sleep(seconds)
