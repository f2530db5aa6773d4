"""What this process remembers of who was who, and how it knows that nothing has changed since.

Every change that can take a right away turns the *epoch* of whom it concerns, in the same transaction: triggers of the database do it, so
no use case, no older version of us and no administrator with a SQL prompt can forget to. An answer is remembered with the epochs that stood
before it was read, and holds while they stand: one read of a short row instead of the reads and comparisons behind the answer. Only passes
are remembered, never refusals, and none outlives what it was known to end with. An epoch is a random number and no count: a standby that
was promoted with less than its primary knew can never come back to a number that was remembered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import blake2b
from typing import Any, Final, NamedTuple

from sqlalchemy import BigInteger, Connection, String, bindparam, cast, func, literal_column, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Mapped, mapped_column

from identity import grounds
from identity.storage import Base, Database, Prepared, Unit

EVERYBODY: Final = "*"
_SUFFIX: Final = 3
_CAPACITY: Final = 4_096
_TRIES: Final = 10
_LOCK: Final = 0x1DE27178


class Epoch(Base):
    """The epoch of a shard: of everybody (`*`), or of all whose id ends in three characters."""

    __tablename__ = "epoch"

    shard: Mapped[str] = mapped_column(String(8), primary_key=True)
    value: Mapped[int] = mapped_column(BigInteger)


@dataclass(frozen=True, slots=True)
class Watch:
    """Which changes of a table turn which epoch.

    `of`: the column whose last characters name the shard; None turns everybody's. `columns`: an update of these counts; the others of the
    table stand in `ignored`, and a test demands that each column stands in one of the two. `inserts`: a new row counts too.
    """

    of: str | None
    columns: tuple[str, ...]
    ignored: tuple[str, ...]
    inserts: bool = False


WATCHED: Final = {
    "user_account": Watch(
        of="id",
        columns=("alias", "full_name", "roles", "groups", "enabled", "starts_at", "ends_at", "attributes"),
        ignored=("id", "verified", "password_hash", "created_at", "version", "unconfirmed_until", "external_id"),
    ),
    "membership": Watch(of="user_id", columns=("user_id", "tenant_id", "roles"), ignored=(), inserts=True),
    "tenant": Watch(
        of=None,
        columns=("limits", "enabled", "disabled_at", "policy", "attributes", "scopes"),
        ignored=("id", "name", "created_at", "version", "members_untold_since"),
    ),
    "user_session": Watch(
        of="user_id",
        columns=(
            "user_id",
            "amr",
            "verified",
            "bearer",
            "auth_time",
            "expires_at",
            "revoked_at",
            "place",
            "rights",
            "idle_expires_at",
        ),
        ignored=(
            *("id", "keypair_id", "client_id", "kind", "seed", "generation", "turned_at", "resource", "created_at"),
            *("ip", "user_agent"),
        ),
    ),
    "keypair": Watch(
        of="user_id",
        columns=(
            *("user_id", "api_key", "fingerprint", "name", "cidrs", "verified", "expires_at", "rights"),
            *("previous_fingerprint", "previous_until", "decoy", "imported_digest"),
        ),
        ignored=("id", "created_at", "last_used_at", "last_used_address", "warned_days", "decoy_told_at"),
    ),
    "application": Watch(
        of="id",
        columns=(
            *("app_id", "name", "tenant_id", "scopes", "roles", "audiences", "token_seconds", "jwks", "enabled"),
            *("disabled_at", "version", "key_set_id", "key_place", "token_claims", "attributes"),
            *("token_reuse_seconds", "tokens_per_day", "decoy"),
        ),
        ignored=("id", "created_at", "decoy_told_at"),
    ),
    "client_secret": Watch(
        of="client_id",
        columns=("client_id", "fingerprint", "expires_at", "retire_after_quiet", "quiet_from", "place"),
        ignored=("id", "created_at", "last_used_at", "last_used_address", "warned_days"),
    ),
    "application_trust": Watch(
        of="client_id",
        columns=("client_id", "issuer", "subject", "claims", "audience", "jwks", "expires_at", "place"),
        ignored=("id", "name", "created_at", "last_used_at", "last_used_address", "warned_days"),
    ),
    "revoked_token": Watch(of="jti", columns=(), ignored=("jti", "expires_at"), inserts=True),
    "ring_version": Watch(of=None, columns=("version",), ignored=("id",)),
}
"""Every table that decides who a caller is and what they may do."""


def shard_of(name: str) -> str:
    """The shard of a user, an application, a token or another thing with an id that ends in chance."""
    return name[-_SUFFIX:]


def shard_of_meter(key: bytes) -> str:
    """The shard of a counter of failed attempts."""
    return f"m{key.hex()[:_SUFFIX]}"


def turn(unit: Unit, shard: str, chance: bytes) -> None:
    """Turn the epoch of a shard that no trigger watches, in this transaction; `chance`: six random bytes."""
    unit.run(_TURN, shard=shard, value=int.from_bytes(chance))


# What an epoch is drawn from: the sum of a few stays within what both databases count in.
_CHANCE: Final = 2**50
_TURNED: Final = "ON CONFLICT (shard) DO UPDATE SET value = excluded.value"
_OWN: Final = "pg_current_xact_id()::xid"
_TURN: Final = Prepared(
    text(f"INSERT INTO epoch (shard, value) VALUES (:shard, :value) {_TURNED}").bindparams(
        bindparam("shard", type_=String), bindparam("value", type_=BigInteger)
    )
)


# Remembering.


class Recollection(NamedTuple):
    """What was remembered, if it still holds; and the epochs that stood when this was asked, where the shards are known."""

    value: Any
    epochs: int | None


class _Entry(NamedTuple):
    shards: tuple[str, ...]
    epochs: int | None
    until: datetime | None
    value: Any


class Memory:
    """The passes that this process remembers. What is asked for once is not kept, only that it was asked for.

    So a stream of credentials that are each used once costs nothing but a note, and pushes out notes before it pushes out answers.
    """

    def __init__(self, database: Database, key: bytes) -> None:
        self._database = database
        self._key = key
        self._entries: dict[bytes, _Entry] = {}
        self._notes: dict[bytes, _Entry] = {}
        self._hits = 0

    def digest(self, *parts: str) -> bytes:
        """The name under which an answer about these credentials is kept; the credentials themselves are not."""
        return blake2b("\0".join(parts).encode("utf-8", "surrogatepass"), digest_size=16, key=self._key).digest()

    def recall(self, name: bytes, now: datetime) -> Recollection:
        """What is remembered under `name` and still holds. Raises Refused(UNAVAILABLE) when the database cannot tell."""
        entry = self._entries.get(name) or self._notes.get(name)
        if entry is None:
            grounds.give_up()
            return _NOTHING
        epochs = self._read(entry.shards)
        if entry.epochs == epochs and entry.until is not None and now < entry.until:
            self._hits += 1
            grounds.note_end(entry.until)
            return Recollection(entry.value, epochs)
        grounds.give_up()
        return Recollection(None, epochs)

    def learn(self, name: bytes, value: Any, *, shards: Sequence[str], until: datetime, asked: Recollection) -> None:
        """Remember `value`, which was read after `asked` was; the first time that it is asked for, only note its shards."""
        wanted = tuple(shards)
        known = self._entries.get(name) or self._notes.get(name)
        # Epochs of other shards say nothing of these: the subject behind the credential has changed.
        if asked.epochs is None or known is None or known.shards != wanted:
            self._keep(self._notes, name, _Entry(wanted, None, None, None))
            return
        self._notes.pop(name, None)
        self._keep(self._entries, name, _Entry(wanted, asked.epochs, until, value))

    def look(self, name: bytes, now: datetime, *, shards: Sequence[str]) -> Recollection:
        """As `recall`, where the shards are known before: their epochs are told also where nothing is remembered."""
        wanted = tuple(shards)
        entry = self._entries.get(name)
        epochs = self._read(wanted)
        is_good = entry is not None and (entry.shards, entry.epochs) == (wanted, epochs)
        if entry is not None and is_good and entry.until is not None and now < entry.until:
            self._hits += 1
            grounds.note_end(entry.until)
            return Recollection(entry.value, epochs)
        grounds.give_up()
        return Recollection(None, epochs)

    def keep(self, name: bytes, value: Any, *, shards: Sequence[str], until: datetime, asked: Recollection) -> None:
        """Remember `value`, all of which was read after `asked` looked at these shards; already the first time."""
        self._keep(self._entries, name, _Entry(tuple(shards), asked.epochs, until, value))

    def take_hits(self) -> int:
        """How often something that still held was found since the last call; without a lock, so about."""
        hits, self._hits = self._hits, 0
        return hits

    def _read(self, shards: tuple[str, ...]) -> int:
        names, read = _READS[len(shards)]
        row = self._database.row(read, **dict(zip(names, shards, strict=True)))
        return row[0] if row else 0

    def _keep(self, entries: dict[bytes, _Entry], name: bytes, entry: _Entry) -> None:
        if len(entries) >= _CAPACITY and name not in entries:
            # The oldest half goes at once: a dict remembers its order, and one by one would cost each newcomer a walk.
            for old in list(entries)[: _CAPACITY // 2]:
                entries.pop(old, None)
        entries[name] = entry


_NOTHING: Final = Recollection(None, None)


def _read_of(names: tuple[str, ...]) -> tuple[tuple[str, ...], Prepared[tuple[int]]]:
    # Back from PostgreSQL's exact `numeric`: a few of them stay within what both databases count in.
    total = cast(func.coalesce(func.sum(Epoch.value), literal_column("0")), BigInteger)
    return names, Prepared(select(total).where(Epoch.shard.in_([bindparam(name) for name in names])))


_READS: Final = {count: _read_of(("a", "b", "c", "d")[:count]) for count in range(1, 5)}


# The triggers. They are no step of the schema's history but follow from the code.


def lay_triggers(database: Database) -> int:
    """Make the database turn epochs as `WATCHED` says, whatever it did before; tell how many triggers came or went.

    A trigger's name tells its definition, so what stays the same is not touched. On PostgreSQL each that comes or goes has a transaction
    of its own: an older version of us may be serving, and must not wait for long.
    """
    # As a read: where nothing is to be laid, a start needs no lock that somebody else may hold.
    with database.engine.execution_options(identity_reading=True).connect() as connection:
        changes = _changes(database, connection)
    for part in [changes] if database.is_sqlite else [{name: each} for name, each in changes.items()]:
        if part:
            _change(database, part)
    return len(changes)


def _changes(database: Database, connection: Connection) -> dict[str, list[str]]:
    """What is to be run for each trigger that is missing, or that is not wanted any more."""
    wanted = _triggers(sqlite=database.is_sqlite)
    found = {str(name): str(table) for name, table in connection.exec_driver_sql(_found(database)).all()}
    stale = {name: _drops(database, name, found[name]) for name in found.keys() - wanted.keys()}
    return dict(sorted((stale | {name: wanted[name] for name in wanted.keys() - found.keys()}).items()))


def _change(database: Database, changes: Mapping[str, Sequence[str]]) -> None:
    """Run what is still to be run of `changes`, in one transaction; another process may have been faster."""
    for attempt in range(_TRIES):
        try:
            with database.engine.begin() as connection:
                if not database.is_sqlite:
                    connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")
                for name in changes.keys() & _changes(database, connection).keys():
                    for statement in changes[name]:
                        connection.exec_driver_sql(statement)
                return
        except DBAPIError:
            # A table that is being written may be waited for too long, or in a circle.
            if attempt == _TRIES - 1:
                raise


def _found(database: Database) -> str:
    if database.is_sqlite:
        return "SELECT name, tbl_name FROM sqlite_master WHERE type = 'trigger' AND name GLOB 'epoch_*'"
    return (
        "SELECT tgname, tgrelid::regclass::text FROM pg_trigger JOIN pg_class ON pg_class.oid = tgrelid "
        "WHERE NOT tgisinternal AND starts_with(tgname, 'epoch_') AND pg_table_is_visible(tgrelid)"
    )


def _drops(database: Database, name: str, table: str) -> list[str]:
    if database.is_sqlite:
        return [f"DROP TRIGGER IF EXISTS {name}"]
    return [f"DROP TRIGGER IF EXISTS {name} ON {table}", f"DROP FUNCTION IF EXISTS {name}()"]


def _triggers(*, sqlite: bool) -> dict[str, list[str]]:
    """Each trigger's name, which ends in a digest of what it does, and the statements that make it."""
    made = {}
    for table, watch in WATCHED.items():
        for event, row in _events(watch):
            spelled = (_sqlite_trigger if sqlite else _postgresql_trigger)(table, watch, event, row)
            digest = blake2b("".join(spelled).encode(), digest_size=4).hexdigest()
            name = f"epoch_{table}_{event.lower()}_{digest}"
            made[name] = [statement.replace("{name}", name) for statement in spelled]
    return made


def _events(watch: Watch) -> list[tuple[str, str]]:
    """Each event that counts, and the name of the row that it shows."""
    shown = [("DELETE", "OLD")]
    if watch.columns:
        shown.append(("UPDATE", "NEW"))
    if watch.inserts:
        shown.append(("INSERT", "NEW"))
    return shown


def _head(table: str, watch: Watch, event: str, row: str, *, differ: str) -> tuple[str, str]:
    """What a trigger fires after, and its condition; `differ` compares two values, of which both may be NULL."""
    conditions = [] if watch.of is None else [f'{row}."{watch.of}" IS NOT NULL']
    columns = ""
    if event == "UPDATE":
        columns = " OF " + ", ".join(f'"{one}"' for one in watch.columns)
        conditions.append("(" + " OR ".join(f'OLD."{one}" {differ} NEW."{one}"' for one in watch.columns) + ")")
    return f"AFTER {event}{columns} ON {table}", f" WHEN ({' AND '.join(conditions)})" if conditions else ""


def _sqlite_trigger(table: str, watch: Watch, event: str, row: str) -> list[str]:
    after, when = _head(table, watch, event, row, differ="IS NOT")
    shard = f"'{EVERYBODY}'" if watch.of is None else f'substr({row}."{watch.of}", -{_SUFFIX})'
    turned = f"INSERT INTO epoch (shard, value) VALUES ({shard}, random() & {_CHANCE - 1}) {_TURNED}"
    return [f"CREATE TRIGGER {{name}} {after}{when} BEGIN {turned}; END"]


def _postgresql_trigger(table: str, watch: Watch, event: str, row: str) -> list[str]:
    after, when = _head(table, watch, event, row, differ="IS DISTINCT FROM")
    shard = f"'{EVERYBODY}'" if watch.of is None else f'right({row}."{watch.of}", {_SUFFIX})'
    value = f"floor(random() * {_CHANCE})::bigint"
    # Once in a transaction is enough: ten thousand versions of one row, each looked for behind all those before it, take minutes.
    turned = f"INSERT INTO epoch (shard, value) VALUES ({shard}, {value}) {_TURNED} WHERE epoch.xmin <> {_OWN}"
    return [
        f"CREATE OR REPLACE FUNCTION {{name}}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {turned}; RETURN NULL; END $$",
        f"CREATE TRIGGER {{name}} {after} FOR EACH ROW{when} EXECUTE FUNCTION {{name}}()",
    ]
