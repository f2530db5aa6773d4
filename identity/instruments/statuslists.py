"""Status lists: what is not valid any more, for verifiers that never ask us (IETF draft Token Status List, -21).

A list has 2^20 places of two bits. What is granted gets a place of its own; the rows here name only places that are not valid, so that
growth follows revocations. A process keeps every list in memory, reads what was added since, and signs a list anew when it has changed
or a `ttl` has passed: never because somebody asks, and never from what it could not read. Which deed sets which place is told in
`core.tokens.status`.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import threading
import time
import zlib
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from functools import cache
from typing import Any, Final, NamedTuple

from sqlalchemy import BigInteger, String, bindparam, func, insert, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Mapped, mapped_column

from identity.ambient import Clock, later
from identity.canonical import encode_base64url
from identity.columns import Instant, from_micros, to_micros
from identity.errors import Refused
from identity.instruments.keyring import Keyring
from identity.settings import Settings
from identity.storage import Base, Database, Prepared, Unit

BITS: Final = 2
PLACES: Final = 2**20
INVALID: Final = 1
CHANGED: Final = 3
_MASK: Final = 2**BITS - 1
_BYTES: Final = PLACES * BITS // 8
PATH: Final = "/.well-known/status-lists"
TYPE: Final = "statuslist+jwt"
LIFE_SECONDS: Final = 3600
# A block that lies in memory for longer is thrown away: a list whose last block is that old is named by nothing new.
_SHELF_SECONDS: Final = 86_400
_FIRST_BLOCK: Final = 16
_LARGEST_BLOCK: Final = 4096
# Lists have a million places each: nobody fills so many between a backup and a restore.
_SKIPPED: Final = 100
# What has expired by then is left out; the same moments on every host.
_MARK_SECONDS: Final = 1800
# An entry is dated before it is committed, by a host whose clock may be slow: it shows up that much later at most, or with the next whole.
_OVERLAP_SECONDS: Final = 180
_WHOLE_SECONDS: Final = 300
_RETRY_SECONDS: Final = 1.0
_EVER: Final = from_micros(0)
_encode: Final = json.JSONEncoder(separators=(",", ":")).encode


class StatusList(Base):
    """A list: how many of its places were given out, and until when a session may name one of them."""

    __tablename__ = "status_list"

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    used: Mapped[int] = mapped_column(BigInteger)
    named_until: Mapped[datetime] = mapped_column(Instant)


class StatusEntry(Base):
    """A place that is not valid; or, with a `token_id`, one token of a place that still is. Only ever added, and forgotten when expired."""

    __tablename__ = "status_entry"

    place: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    value: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    token_id: Mapped[str] = mapped_column(String(64), primary_key=True, default="")
    entered_at: Mapped[datetime] = mapped_column(Instant, index=True)
    expires_at: Mapped[datetime] = mapped_column(Instant, index=True)


class Published(NamedTuple):
    """A signed list as it goes over the wire."""

    body: bytes
    gzipped: bytes
    etag: str


class _Block(NamedTuple):
    """Places that this process may give out."""

    places: range
    good_until: datetime
    owner: int


class Places:
    """The two bits of each place in a list: 0, valid, for all but those that were set."""

    __slots__ = ("_packed",)

    def __init__(self) -> None:
        self._packed: bytearray | None = None

    def get(self, index: int) -> int:
        """The value of a place."""
        byte, offset = divmod(index * BITS, 8)
        return 0 if self._packed is None else self._packed[byte] >> offset & _MASK

    def set(self, index: int, value: int) -> None:
        """Give a place its value."""
        if self._packed is None:
            self._packed = bytearray(_BYTES)
        byte, offset = divmod(index * BITS, 8)
        self._packed[byte] = self._packed[byte] & ~(_MASK << offset) | value << offset

    def encode(self) -> str:
        """The `lst` (draft-ietf-oauth-status-list section 4.2): lowest bits first in each byte, then zlib, then base64url."""
        return _all_valid() if self._packed is None else encode_base64url(zlib.compress(self._packed, 9))


@cache
def _all_valid() -> str:
    return encode_base64url(zlib.compress(bytes(_BYTES), 9))


class _Kept:
    """A list in memory. Whoever reads rows holds one lock and changes what it says; whoever signs holds another."""

    __slots__ = ("asked_at", "places", "published", "said", "signed_for", "tokens")

    def __init__(self) -> None:
        self.places = Places()
        self.tokens: dict[str, int] = {}
        self.said: tuple[str, tuple[str, ...]] = (_all_valid(), ())
        self.published: Published | None = None
        self.signed_for: tuple[Any, ...] = ()
        self.asked_at = float("-inf")

    def enter(self, index: int, value: int, token_id: str) -> bool:
        """Enter what a row says; tell whether that was news. A place that is invalid for good stays it, whatever else is said of it."""
        if token_id:
            is_news = token_id not in self.tokens
            self.tokens[token_id] = index
            return is_news
        if self.places.get(index) in (INVALID, value):
            return False
        self.places.set(index, value)
        return True

    def say(self) -> None:
        """Make what is signed of what was entered. Of a place that is not valid nobody needs to hear about single tokens."""
        self.said = (
            self.places.encode(),
            tuple(sorted(one for one, at in self.tokens.items() if not self.places.get(at))),
        )


class _Entry(NamedTuple):
    """A row of `status_entry`, as far as it is told to verifiers."""

    place: int
    value: int
    token_id: str


_LISTS: Final = Prepared(select(StatusList.id))
_SINCE: Final = (
    StatusEntry.entered_at > bindparam("since", type_=Instant),
    StatusEntry.expires_at > bindparam("mark", type_=Instant),
)
_ENTRIES: Final = Prepared(
    select(StatusEntry.place, StatusEntry.value, StatusEntry.token_id).where(*_SINCE), into=_Entry
)
# Entries are only added: as long as these two are the same, so are the entries.
_PROBE: Final = Prepared(select(func.count(), func.coalesce(func.sum(StatusEntry.place), 0)).where(*_SINCE))


class _Recent(NamedTuple):
    """What was entered lately, and how it is recognised."""

    since: datetime
    rows: set[_Entry]
    probe: tuple[int, int]


class StatusLists:
    """The status lists as this process knows them, and the places that it may give out."""

    def __init__(self, settings: Settings, clock: Clock, database: Database, ring: Keyring) -> None:
        self._settings = settings
        self._clock = clock
        self._database = database
        self._ring = ring
        self._blocks: list[_Block] = []
        self._block_size = _FIRST_BLOCK
        self._taking = threading.Lock()
        self._reading = threading.Lock()
        self._signing = threading.Lock()
        self._kept: dict[int, _Kept] = {}
        self._mark: datetime | None = None
        self._read_at: datetime | None = None
        self._whole_at = float("-inf")
        self._recent: _Recent | None = None
        self._not_before = 0.0
        self._fresh_for = timedelta(seconds=settings.status_ttl_seconds)

    # Giving out places.

    def take(self, unit: Unit) -> int:
        """A place that nothing else has had or will have. It costs a write once in thousands of times."""
        with self._taking:
            while self._blocks:
                block = self._blocks[-1]
                # A fork would give the same places out twice.
                if block.places and unit.now < block.good_until and block.owner == os.getpid():
                    self._blocks[-1] = block._replace(places=block.places[1:])
                    return block.places[0]
                self._blocks.pop()
            size, self._block_size = self._block_size, min(4 * self._block_size, _LARGEST_BLOCK)
        leased = self.lease(unit, size)
        rest = _Block(leased[1:], later(unit.now, _SHELF_SECONDS), os.getpid())
        # Once they are ours for good: places of a transaction that is undone are given to somebody else.
        unit.after_commit(lambda: self._blocks.append(rest))
        return leased[0]

    def lease(self, unit: Unit, count: int) -> range:
        """So many places in a row, at most 2^20, by one write."""
        needed = _SHELF_SECONDS + max(self._settings.session_absolute_seconds, self._settings.longest_token_seconds)
        named_until = later(unit.now, needed)
        newest = select(StatusList).order_by(StatusList.id.desc()).limit(1).with_for_update()
        while True:
            row = unit.execute(newest.execution_options(populate_existing=True)).scalar_one_or_none()
            if row is not None and row.used + count <= PLACES:
                first = row.id * PLACES + row.used
                row.used += count
                row.named_until = max(row.named_until, named_until)
                unit.session.flush()
                return range(first, first + count)
            try:
                with unit.session.begin_nested():
                    number = 0 if row is None else row.id + 1
                    unit.execute(insert(StatusList).values(id=number, used=0, named_until=named_until))
            except IntegrityError:
                continue  # Another process has begun that list at this moment.

    def skip(self, unit: Unit) -> None:
        """Begin a list far behind the newest: those between may have been in use after the backup from which this database comes."""
        newest = unit.execute(select(func.max(StatusList.id))).scalar()
        number = 0 if newest is None else newest + _SKIPPED
        unit.execute(insert(StatusList).values(id=number, used=0, named_until=unit.now))
        self._blocks.clear()

    def uri(self, number: object) -> str:
        """Where a list is read."""
        return f"{self._settings.issuer}{PATH}/{number}"

    def claim(self, place: int) -> dict[str, Any]:
        """The claim `status` of a token whose grant has this place."""
        number, index = divmod(place, PLACES)
        return {"status_list": {"idx": index, "uri": self.uri(number)}}

    def place_of(self, claims: Mapping[str, Any]) -> int | None:
        """The place that a token names, from its claims; None for one from before there were lists."""
        try:
            named = claims["status"]["status_list"]
            number, index = int(named["uri"].removeprefix(self.uri(""))), int(named["idx"])
        except (KeyError, TypeError, ValueError, AttributeError):
            return None
        return number * PLACES + index

    # Being read.

    def uris(self) -> list[str]:
        """Every list that a living token can name."""
        self._ensure_read()
        return [self.uri(number) for number in sorted(self._kept)]

    def find(self, number: int) -> Published | None:
        """A list, signed, or None where there is none of that number. From memory, but where this process has no loop in the background."""
        has_read = self._ensure_read(unknown=number not in self._kept)
        kept = self._kept.get(number)
        if kept is None:
            return None
        kept.asked_at = time.monotonic()
        # What a key has signed that was withdrawn is worth nothing.
        if has_read or kept.published is None or kept.signed_for[0] != self._ring.active_kid(self._clock.now()):
            self._database.refuse_writes_here()  # The event loop does not sign.
            self._sign(number, kept)
        return kept.published

    def refresh(self) -> None:
        """Read what was added and sign what has changed; a background job. Raises Refused(UNAVAILABLE) and keeps what it knows."""
        with self._reading:
            self._read()
        for number, kept in self._kept.items():
            # One that nobody has asked for in the life of a copy is signed when somebody does.
            if time.monotonic() - kept.asked_at < LIFE_SECONDS:
                self._sign(number, kept)

    def _ensure_read(self, *, unknown: bool = False) -> bool:
        """Read if nobody has within a `ttl`: there is no background, or the database is down, and then what is known serves on.

        Tells whether it has read.
        """
        read_at = self._read_at
        is_fresh = read_at is not None and abs(self._clock.now() - read_at) < self._fresh_for
        if (is_fresh and not unknown) or (read_at is not None and time.monotonic() < self._not_before):
            return False
        self._database.refuse_writes_here()  # The event loop must not wait for a database.
        # One at a time; the others are served what is there, unless there is nothing.
        if not self._reading.acquire(blocking=read_at is None):
            return False
        try:
            self._read()
        except Refused:
            self._not_before = time.monotonic() + _RETRY_SECONDS
            if read_at is None:
                raise
            return False
        finally:
            self._reading.release()
        # Made-up numbers make nobody read more often than that.
        self._not_before = time.monotonic() + _RETRY_SECONDS if is_fresh else 0.0
        return True

    def _read(self) -> None:
        """Read what was entered since the last time; now and then everything, so that what has expired goes."""
        now, started = self._clock.now(), time.monotonic()
        mark = _floor(now, _MARK_SECONDS)
        if self._read_at is None or mark != self._mark or started - self._whole_at >= _WHOLE_SECONDS:
            rows = set(self._database.rows(_ENTRIES, since=_EVER, mark=mark))
            for kept in self._kept.values():
                kept.places, kept.tokens = Places(), {}
            said = self._enter(rows)
            for number in self._kept.keys() - said:
                self._kept[number].say()  # What it held has expired.
            self._whole_at, self._recent = started, None
        elif self._recent is None or self._is_news(mark):
            known = self._recent.rows if self._recent else set()
            since = later(self._read_at, -_OVERLAP_SECONDS)
            rows = set(self._database.rows(_ENTRIES, since=since, mark=mark))
            self._enter(rows - known)
            self._recent = _Recent(since, rows, (len(rows), sum(row.place for row in rows)))
        else:
            self._enter(())
        self._mark, self._read_at = mark, now

    def _is_news(self, mark: datetime) -> bool:
        """Whether there are entries that were not there at the last reading; for the price of counting."""
        assert self._recent is not None, "asked after a reading"
        found = self._database.row(_PROBE, since=self._recent.since, mark=mark)
        return found is None or (int(found[0]), int(found[1])) != self._recent.probe

    def _enter(self, rows: Iterable[_Entry]) -> set[int]:
        """Enter rows that were read before this into the lists that there are; tell which lists say something else now."""
        lists = {number: self._kept.get(number) or _Kept() for (number,) in self._database.rows(_LISTS)}
        changed = set()
        for row in rows:
            number, index = divmod(row.place, PLACES)
            # A list that is missing was forgotten: whatever named it is dead.
            if number in lists and lists[number].enter(index, row.value, row.token_id):
                changed.add(number)
        for number in changed:
            lists[number].say()
        self._kept = lists
        return changed

    def _sign(self, number: int, kept: _Kept) -> None:
        """Sign a list as of the last reading, unless that was done. Every process and host makes the same bytes of the same rows."""
        assert self._read_at is not None, "there is no list before the first reading"
        assert self._mark is not None, "see above"
        ttl, now = self._settings.status_ttl_seconds, self._clock.now()
        issued, (lst, tokens) = int(_floor(self._read_at, ttl).timestamp()), kept.said
        wanted = (self._ring.active_kid(now), issued, lst, tokens, self._mark)
        with self._signing:
            if kept.signed_for == wanted:
                return
            claims: dict[str, Any] = {
                "sub": self.uri(number),
                "iat": issued,
                "exp": issued + LIFE_SECONDS,
                "ttl": ttl,
                "status_list": {"bits": BITS, "lst": lst},
            }
            if tokens:
                claims["revoked_tokens"] = tokens
            body = self._ring.sign(claims, now=now, typ=TYPE).encode()
            # Weak, and made of what it says: a copy that says the same is good on, and lives for half an hour more at least.
            said = _encode([wanted[0], lst, tokens, to_micros(self._mark)]).encode()
            etag = f'W/"{hashlib.sha256(said).hexdigest()[:32]}"'
            # Without a time: it would tell hosts apart.
            kept.published = Published(body, gzip.compress(body, compresslevel=1, mtime=0), etag)
            kept.signed_for = wanted


def _floor(moment: datetime, seconds: int) -> datetime:
    """The last moment that is a multiple of so many seconds since the epoch."""
    step = seconds * 1_000_000
    return from_micros(to_micros(moment) // step * step)
