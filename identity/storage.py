"""The database: engines, units of work and prepared reads. It knows no table.

Writes go through a `Unit`: one transaction, committed when its block ends. Reads that need the ORM go through
`Database.reading()`. Hot reads are `Prepared`: compiled once by SQLAlchemy, run on a kept driver connection of their
thread in autocommit, so that each sees whatever any process committed before it began.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, overload

from sqlalchemy import (
    Connection,
    Dialect,
    Executable,
    Insert,
    MetaData,
    Select,
    TextClause,
    TextualSelect,
    event,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import DeclarativeBase, Session
from sqlalchemy.pool import PoolProxiedConnection
from sqlalchemy.types import TypeEngine

from identity import aside, grounds, outages
from identity.ambient import Origin
from identity.columns import Instant, Names
from identity.engines import (
    BUSY_SECONDS,
    IMPATIENT_MILLISECONDS,
    LASTING,
    SET_TIMEOUTS,
    SQLITE_OPTIONS,
    Address,
    driver_url,
    leader_first,
    postgresql_engine,
    postgresql_options,
    prepare_file,
    prepare_sqlite,
    shown,
    sqlite_engine,
)
from identity.errors import UNAVAILABLE, Refused
from identity.outages import READ_ONLY, Contention, is_race, reason_of, translate

if TYPE_CHECKING:
    from identity.lanes import Lanes

__all__ = ["Contention", "is_race"]  # Callers know them as ours.
T = TypeVar("T")
R = TypeVar("R", bound=tuple[Any, ...])


class Base(DeclarativeBase):
    """The mother of every row. Constraint names are fixed, so that migrations can name them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_N_label)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class Unit:
    """One write transaction, with the single moment that everything in it agrees on.

    Commits when the block ends well or is Refused with a problem that `keeps_writes`; rolls back otherwise. A failed
    commit raises: nothing that was not committed may be answered with success.
    """

    __slots__ = ("_after", "_database", "_lasting", "_pooled", "_session", "now", "origin")

    def __init__(self, database: Database, now: datetime, origin: Origin, *, lasting: bool) -> None:
        self._database = database
        self._lasting = lasting
        self._after: list[Callable[[], None]] = []
        self._session: Session | None = None
        self._pooled: PoolProxiedConnection | None = None
        self.now = now
        self.origin = origin

    def __enter__(self) -> Self:
        self._database.refuse_writes_here()
        with self._database.noted(), translated():
            self._pooled = pooled = self._call(self._database.engine.raw_connection)
            try:
                self._begin(pooled)
            except BaseException:
                pooled.close()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        keep = exc is None or (isinstance(exc, Refused) and exc.problem.keeps_writes)
        pooled = self._get_pooled()
        transaction = pooled if self._session is None else self._session
        try:
            with self._database.noted(), translated():
                if keep:
                    self._call(transaction.commit)
                    self._database.outage.ended()
                else:
                    if pooled.is_valid:
                        self._call(transaction.rollback)
                    translate(exc)
        finally:
            if self._session is not None:
                self._session.close()
            pooled.close()
        for deed in self._after if keep else ():
            deed()

    def _get_pooled(self) -> PoolProxiedConnection:
        assert self._pooled is not None, "a unit is used inside its block"
        return self._pooled

    def _begin(self, pooled: PoolProxiedConnection) -> None:
        execute = pooled.driver_connection.execute  # type: ignore[union-attr]  # just taken from the pool
        if self._database.is_sqlite:
            # It holds for the connection, and whoever had that last may have wanted the other.
            self._call(execute, LASTING if self._lasting else "PRAGMA synchronous=NORMAL")
            # The write lock at once: a read that becomes a write could only fail when it meets another.
            if self._database.outage.since is None:
                self._call(execute, "BEGIN IMMEDIATE")
                return
            # Somebody has waited the whole patience in vain. If each did, readers would find no thread that is free.
            try:
                self._call(execute, f"PRAGMA busy_timeout={IMPATIENT_MILLISECONDS}")
                self._call(execute, "BEGIN IMMEDIATE")
            finally:
                self._call(execute, f"PRAGMA busy_timeout={BUSY_SECONDS * 1000}")
            return
        wanted = [SET_TIMEOUTS] if self._database.is_pooled else []
        if not self._lasting:
            wanted.append("SET LOCAL synchronous_commit = off")
        if wanted:
            self._call(execute, "; ".join(wanted))

    def _call(self, deed: Callable[..., T], *arguments: Any) -> T:
        """Do it. A driver's error is translated as `translated` does; any other is raised as the one of SQLAlchemy's that callers know."""
        dialect = self._database.engine.dialect
        base = dialect.loaded_dbapi.Error
        try:
            return deed(*arguments)
        except base as exc:
            pooled = self._pooled
            is_lost = pooled is not None and dialect.is_disconnect(exc, pooled.driver_connection, None)
            if pooled is not None and is_lost:
                pooled.invalidate(exc)  # so that the pool hands it to nobody else
            if getattr(exc, "sqlstate", None) == READ_ONLY:
                self._database.cut()  # No longer a primary: nothing may go on reading it either.
            error = DBAPIError.instance(None, None, exc, base, connection_invalidated=is_lost, dialect=dialect)
            translate(error, connecting=pooled is None)
            raise error from exc

    @property
    def session(self) -> Session:
        """The ORM's view of this transaction, made when first asked for: a unit of prepared statements needs none."""
        if self._session is None:
            connection = Connection(self._database.engine, self._get_pooled()).execution_options(identity_begun=True)
            connection.begin()
            self._session = Session(connection, expire_on_commit=False, join_transaction_mode="control_fully")
        return self._session

    def after_commit(self, deed: Callable[[], None]) -> None:
        """Run `deed` once the transaction is durable, for in-process hints only (waking the mail loop)."""
        self._after.append(deed)

    def execute(self, statement: Executable) -> Any:
        """Run a statement; a lost connection or a conflict is translated."""
        with translated():
            return self.session.execute(statement)

    def insert(self, row: type[Base], **values: Any) -> None:
        """A new row at the driver's cost, for what every login writes: each column must be given, and the ORM does not learn of it."""
        prepared = _inserts.get(row.__tablename__)
        if prepared is None:
            prepared = _inserts[row.__tablename__] = Prepared(Base.metadata.tables[row.__tablename__].insert())
        self.run(prepared, **values)

    def run(self, prepared: Prepared[R], **values: Any) -> list[R]:
        """The rows that a prepared statement returns, at the driver's cost, inside this transaction."""
        statement, arrange, convert = prepared.compiled_for(self._database.engine.dialect)
        return [convert(row) for row in self._call(self._fetch, statement, arrange(values))]

    def _fetch(self, statement: str, parameters: Any) -> list[Any]:
        driver: Any = self._get_pooled().driver_connection
        cursor = driver.execute(statement, parameters)
        return list(cursor.fetchall()) if cursor.description else []

    def changed(self, statement: Executable) -> int:
        """Run a conditional update or delete and tell how many rows it took: how races are decided."""
        count: int = self.execute(statement).rowcount
        return count

    def insert_missing(self, row: type[Base], columns: Sequence[str], source: Select[*tuple[Any, ...]]) -> None:
        """Insert what a select gives; a row that is there already stays as it is."""
        make = sqlite.insert if self._database.is_sqlite else postgresql.insert
        self.execute(make(row).from_select(columns, source).on_conflict_do_nothing())

    def add(self, row: Base) -> None:
        """Insert `row` now, so that a broken constraint shows here and not at commit."""
        with translated():
            self.session.add(row)
            self.session.flush()


Compiled = tuple[str, Callable[[dict[str, Any]], Any], Callable[[Sequence[Any]], R]]
Statement = Select[*tuple[Any, ...]] | TextClause | TextualSelect | Insert


class Prepared(Generic[R]):
    """A statement that is compiled once for each database and then costs only the driver's call.

    A row is `into`, a named tuple with a field for each column, in their order; without it a plain tuple. The columns' types are
    applied. `Database.rows` runs a select outside any transaction, `Unit.run` anything inside one.
    """

    __slots__ = ("_compiled", "_into", "_statement")

    @overload
    def __init__(self: Prepared[tuple[Any, ...]], statement: Statement) -> None: ...
    @overload
    def __init__(self, statement: Statement, *, into: type[R]) -> None: ...
    def __init__(self, statement: Statement, *, into: Any = None) -> None:
        self._statement = statement
        self._into = into
        self._compiled: dict[str, Compiled[R]] = {}

    def compiled_for(self, dialect: Dialect) -> Compiled[R]:
        """The statement's text for a driver, what arranges its parameters, and what converts a row of its answer."""
        known = self._compiled.get(dialect.paramstyle)
        if known is None:
            known = self._compiled[dialect.paramstyle] = self._compile(dialect)
        return known

    def _compile(self, dialect: Dialect) -> Compiled[R]:
        compiled = self._statement.compile(dialect=dialect)
        binds = {
            name: bind.type.dialect_impl(dialect).bind_processor(dialect) for bind, name in compiled.bind_names.items()
        }
        fixed = {name: bind.effective_value for bind, name in compiled.bind_names.items() if not bind.required}
        order = compiled.positiontup
        ordered = [(name, binds[name]) for name in order or ()]

        def arrange(values: dict[str, Any]) -> Any:
            given = fixed | values if fixed else values
            if order is not None:
                return tuple([process(given[name]) if process else given[name] for name, process in ordered])
            return {name: process(given[name]) if process else given[name] for name, process in binds.items()}

        columns = self._statement.selected_columns if isinstance(self._statement, Select | TextualSelect) else ()
        processors = [_reader(column.type, dialect) for column in columns]
        converted = [(index, process) for index, process in enumerate(processors) if process is not None]

        # `tuple.__new__`, not the class: a named tuple's own `__new__` is a call in Python for each row.
        fields = getattr(self._into, "_fields", processors)
        if len(fields) != len(processors):
            raise TypeError(f"{self._into.__name__} has {len(fields)} fields for {len(processors)} columns")
        into, build = self._into or tuple, tuple.__new__

        def convert(row: Sequence[Any]) -> R:
            values = list(row)
            for index, process in converted:
                values[index] = process(values[index])
            made: R = build(into, values)
            return made

        return compiled.string, arrange, convert


def _reader(of: TypeEngine[Any], dialect: Dialect) -> Callable[[Any], Any] | None:
    """What turns a driver's value into ours; for our own types without the two calls that SQLAlchemy wraps around theirs."""
    if isinstance(of, Instant | Names):
        return of.read
    return of.dialect_impl(dialect).result_processor(dialect, None)


_inserts: dict[str, Prepared[tuple[Any, ...]]] = {}


class Database:
    """One opened database."""

    def __init__(self, url: str, *, pool_size: int = 10, creates: bool = True, is_pooled: bool = False) -> None:
        """`creates`: an SQLite file that is missing is made (an empty one, 0600). Raises BadSettings, OSError.

        `is_pooled`: a transaction pooler stands in between, so that nothing of a session lasts.
        """
        self.url = driver_url(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self.is_pooled = is_pooled and not self.is_sqlite
        self.file = Path(self.url.database or "").absolute() if self.is_sqlite else None
        if self.file is not None:
            prepare_file(self.file, creates=creates)
        self.engine = (
            sqlite_engine(self.url) if self.is_sqlite else postgresql_engine(self.url, pool_size, pooled=self.is_pooled)
        )
        self.outage = outages.Outage()
        self._kept = threading.local()
        self._opened: set[Any] = set()
        self._pooled: set[Any] = set()
        self._server = ""
        self._leader: Address | None = None
        self._lanes: Lanes | None = None
        if not self.is_sqlite:
            event.listen(self.engine, "connect", lambda connection, _: self._pooled.add(connection))
            event.listen(self.engine, "close", lambda connection, _: self._pooled.discard(connection))
            event.listen(
                self.engine, "do_connect", lambda _d, _r, _a, given: given.update(leader_first(given, self._leader))
            )

    @property
    def shown(self) -> str:
        """Which database this is, for people: never its password."""
        return shown(self.url)

    def unit(self, now: datetime, origin: Origin, *, lasting: bool = True) -> Unit:
        """One write transaction as of `now`; a crash of the host or the database server may undo one that is not `lasting`."""
        return Unit(self, now, origin, lasting=lasting)

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A read transaction: a consistent view that is thrown away."""
        grounds.give_up()
        if aside.is_errand():
            raise aside.Elsewhere
        with translated(), Session(self.engine.execution_options(identity_reading=True)) as session:
            yield session

    def rows(self, prepared: Prepared[R], **values: Any) -> list[R]:
        """Every row of a prepared select, read outside any transaction. Raises Refused(UNAVAILABLE)."""
        lanes = self._lanes if aside.is_errand() else None
        statement, arrange, convert = prepared.compiled_for(self.engine.dialect if lanes is None else lanes.dialect)
        parameters = arrange(values)
        found = self._fetch(statement, parameters) if lanes is None else lanes.fetch(statement, parameters)
        grounds.note_read(statement, parameters, found)
        return [convert(row) for row in found]

    def row(self, prepared: Prepared[R], **values: Any) -> R | None:
        """The first row of a prepared select, or None."""
        found = self.rows(prepared, **values)
        return found[0] if found else None

    def without_writes(self, signal: type[Exception]) -> aside.WithoutWaiting:
        """While it lasts, a unit on this thread raises `signal` instead of waiting for a lock: for the event loop."""
        return aside.WithoutWaiting(signal)

    def refuse_writes_here(self) -> None:
        """Raise the signal of `without_writes`, if this thread is inside one."""
        aside.refuse_waiting()

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Note it in `outage` if this fails because the database does not serve."""
        try:
            yield
        except Refused as exc:
            if exc.problem.code == UNAVAILABLE.code:
                self.outage.began(exc.detail)
            raise

    def ping(self) -> None:
        """Raise Refused(UNAVAILABLE) unless the database answers."""
        self._fetch("SELECT 1", ())

    def follow(self) -> bool:
        """Go where the database's name leads now; tell whether that was another server than before.

        Connections to the one before are cut, also under threads that wait in them: it may be paused, or live on for itself. So are those
        to a server that no longer writes. Nothing happens while nobody answers, or only a standby that is to be promoted.
        """
        found = None if self.is_sqlite else outages.find_server(self.engine, self.url, pooled=self.is_pooled)
        if found is None or (not found.writes and found.identity != self._server):
            return False
        before, self._server = self._server, found.identity
        self._leader = found.address if found.writes else None
        if found.writes and before in ("", found.identity):
            return False
        self.cut()
        return True

    def cut(self) -> None:
        """End every connection; those who need one make a new one."""
        for connection in [*self._opened, *self._pooled]:
            outages.cut(connection)

    def close(self) -> None:
        """Give every connection back."""
        for connection in list(self._opened):
            self._close(connection)
        self.engine.dispose()

    def stand(self, reads: Iterable[tuple[str, Any, list[Any]]]) -> bool:
        """Whether each of these reads (`grounds.Grounds.reads`) finds now what it found then. Raises Refused(UNAVAILABLE)."""
        lanes = self._lanes if aside.is_errand() else None
        fetch = self._fetch if lanes is None else lanes.fetch
        return all(fetch(statement, parameters) == found for statement, parameters, found in reads)

    def serve_aside(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Let the errands of a loop read, and tell whether they can: behind a pooler no statement of theirs would stay prepared."""
        if not self.is_sqlite and not self.is_pooled:
            from identity.lanes import Lanes  # noqa: PLC0415 -- psycopg is nine megabytes that no worker on SQLite needs

            self._lanes = Lanes(loop, self.url, self._connect, self._close)
        return self._lanes is not None or self.is_sqlite

    def _fetch(self, statement: str, parameters: Any) -> list[Any]:
        kept = getattr(self._kept, "connection", None)
        if kept is not None:
            try:
                found: list[Any] = kept.execute(statement, parameters).fetchall()
            except self.engine.dialect.loaded_dbapi.Error as exc:
                # A kept connection may have died while idle: once more on a new one before giving up.
                self._drop_kept()
                if self.is_sqlite:
                    raise Refused(UNAVAILABLE, detail=reason_of(exc), retry_after_seconds=1, cause=exc) from exc
            else:
                return found
        try:
            self._kept.connection = kept = self._connect()
            return list(kept.execute(statement, parameters).fetchall())
        except self.engine.dialect.loaded_dbapi.Error as exc:
            connecting = getattr(self._kept, "connection", None) is None
            self._drop_kept()
            detail = reason_of(exc, connecting=connecting)
            self.outage.began(detail)
            raise Refused(UNAVAILABLE, detail=detail, retry_after_seconds=1, cause=exc) from exc

    def _connect(self) -> Any:
        driver: Any = self.engine.dialect.loaded_dbapi
        arguments, options = self.engine.dialect.create_connect_args(self.url)
        if self.is_sqlite:
            connection = driver.connect(*arguments, **{**options, **SQLITE_OPTIONS})
            prepare_sqlite(connection, None)
        else:
            ours = postgresql_options(self.url, pooled=self.is_pooled)
            extra = {"autocommit": True, "prepare_threshold": 1, **ours}
            connection = driver.connect(*arguments, **leader_first({**options, **extra}, self._leader))
        self._opened.add(connection)
        return connection

    def _drop_kept(self) -> None:
        kept = getattr(self._kept, "connection", None)
        self._kept.connection = None
        if kept is not None:
            self._close(kept)

    def _close(self, connection: Any) -> None:
        self._opened.discard(connection)
        try:
            connection.close()
        except self.engine.dialect.loaded_dbapi.Error:
            return  # It was dead already; that is why it is closed.


@contextmanager
def translated() -> Iterator[None]:
    """Turn a lost or contended database into Refused(UNAVAILABLE) or Contention; constraint violations pass through."""
    try:
        yield
    except PoolTimeoutError as exc:
        raise Refused(UNAVAILABLE, detail="no connection became free", retry_after_seconds=1, cause=exc) from exc
    except DBAPIError as exc:
        translate(exc)
        raise


def is_violation(exc: DBAPIError, constraint: str, columns: str) -> bool:
    """Whether `exc` is the breach of this unique constraint (PostgreSQL names it, SQLite names `table.column`s)."""
    named = getattr(getattr(exc.orig, "diag", None), "constraint_name", None)
    return named == constraint if named else columns in str(exc.orig)
