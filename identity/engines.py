"""Opening a connection to either database: which options, on which file, at which address."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from sqlalchemy import create_engine, event
from sqlalchemy.engine import URL, Engine, make_url
from sqlalchemy.exc import ArgumentError

from identity.files import make_file, make_folder
from identity.settings import BadSettings

BUSY_SECONDS: Final = 5
IMPATIENT_MILLISECONDS: Final = 50
"""How long to wait for SQLite's write lock while it is known that another program keeps it."""
STATEMENT_SECONDS: Final = 10

_SQLITE_REASONS: Final = {
    "SQLITE_FULL": "the disk is full",
    "SQLITE_CANTOPEN": "it cannot be opened; its folder must be there, and ours to write",
    "SQLITE_READONLY": "this user may not write it, or its folder",
    "SQLITE_PERM": "this user may not use it",
    "SQLITE_IOERR": "the disk failed to read or write",
    "SQLITE_NOTADB": "it is a file, but no SQLite database",
    "SQLITE_CORRUPT": "it is damaged; restore a backup",
    "SQLITE_BUSY": f"another program has held it for {BUSY_SECONDS} seconds",
}

# FULL, not NORMAL: an acknowledged write must survive a power cut, and NORMAL may roll the last ones back.
LASTING: Final = "PRAGMA synchronous=FULL"
SQLITE_OPTIONS: Final[dict[str, Any]] = {"timeout": BUSY_SECONDS, "isolation_level": None, "check_same_thread": False}
_POSTGRESQL_OPTIONS: Final[dict[str, Any]] = {
    "connect_timeout": 3,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
    # Behind one name, or in a list of hosts: the server that writes.
    "target_session_attrs": "read-write",
}
_PORT: Final = "5432"
Address = tuple[str, str]
"""A host, or the folder of a socket, and a port, as libpq spells them."""
_TIMEOUTS: Final = {
    "statement_timeout": f"{STATEMENT_SECONDS}s",
    "lock_timeout": f"{BUSY_SECONDS}s",
    "idle_in_transaction_session_timeout": "30s",
}
SET_TIMEOUTS: Final = "; ".join(f"SET LOCAL {name} = '{value}'" for name, value in _TIMEOUTS.items())
"""For each transaction behind a pooler, which would give what a session sets to somebody else."""


def driver_url(url: str) -> URL:
    """A database URL of the settings as SQLAlchemy's, with the driver that we use. Raises BadSettings."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as exc:
        raise BadSettings("IDENTITY_DATABASE_URL: is no URL that can be read") from exc
    # `postgres` is how hosting companies spell it.
    return parsed.set(drivername="postgresql+psycopg") if parsed.drivername in ("postgresql", "postgres") else parsed


def shown(url: URL) -> str:
    """Which database this is, for people: never its password."""
    if url.get_backend_name() == "sqlite":
        return str(Path(url.database or "").absolute())
    return url.set(drivername="postgresql").render_as_string(hide_password=True)


def explained(url: URL, failure: BaseException) -> str:
    """Why the database did not serve, in words for an operator, from a driver's error; never a value that was to be stored."""
    name, state = getattr(failure, "sqlite_errorname", None), getattr(failure, "sqlstate", None)
    if name is not None:
        # SQLITE_IOERR_WRITE is a kind of SQLITE_IOERR.
        reason = _SQLITE_REASONS.get("_".join(name.split("_")[:2]), name)
    elif state is None:
        # No session yet, so nothing of ours is in the text: the address, the user and what the server said to them.
        reason = next(iter(str(failure).strip().splitlines()), type(failure).__name__)
    else:
        reason = f"{type(failure).__name__} (SQLSTATE {state})"
    return f"the database {shown(url)} did not do that: {reason}; see IDENTITY_DATABASE_URL"


def postgresql_options(url: URL, *, pooled: bool) -> dict[str, Any]:
    """Our options for a connection; what the URL says of the same is kept, and wins.

    A transaction pooler takes no session settings, and no prepared statement survives it.
    """
    ours = {name: value for name, value in _POSTGRESQL_OPTIONS.items() if name not in url.query}
    if pooled:
        return ours | {"prepare_threshold": None}
    settings = [f"-c {name}={value}" for name, value in (_TIMEOUTS | {"timezone": "UTC"}).items()]
    theirs = url.query.get("options", ())
    spelled = (theirs,) if isinstance(theirs, str) else theirs
    return ours | {"options": " ".join((*settings, *spelled))}


def leader_first(options: dict[str, Any], leader: Address | None) -> dict[str, Any]:
    """Connection options whose list of hosts begins with the one that is known to write.

    A host that is silent would else cost every new connection its whole timeout, for as long as the list begins with it.
    """
    hosts, ports = (str(options.get(name, "")).split(",") for name in ("host", "port"))
    if leader is None or len(hosts) == 1:
        return options
    listed = list(zip(hosts, ports if len(ports) == len(hosts) else ports * len(hosts), strict=True))
    listed.sort(key=lambda one: (one[0], one[1] or _PORT) != leader)
    return options | {"host": ",".join(host for host, _ in listed), "port": ",".join(port for _, port in listed)}


def prepare_file(path: Path, *, creates: bool) -> None:
    """See that there is an SQLite file, or make an empty one that only its owner may read. Raises BadSettings."""
    if creates:
        try:
            make_folder(path.parent)
            # SQLite gives -wal and -shm the mode of the database itself.
            make_file(path)
        except OSError as exc:
            raise BadSettings(f"IDENTITY_DATABASE_URL: {path} cannot be made: {exc.strerror}") from exc
    elif not path.exists():
        raise BadSettings(
            f"IDENTITY_DATABASE_URL: there is no database {path}; `identity serve` or `identity migrate` makes one, or name another"
        )


def sqlite_engine(url: URL) -> Engine:
    """Connections that take the write lock when a transaction begins, unless it says that it reads."""
    engine = create_engine(url, connect_args=SQLITE_OPTIONS, pool_size=20, max_overflow=0, pool_timeout=BUSY_SECONDS)
    event.listen(engine, "connect", prepare_sqlite)

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        options = connection.get_execution_options()
        if not options.get("identity_begun", False):  # a unit's ORM joins what the unit began
            connection.exec_driver_sql("BEGIN" if options.get("identity_reading", False) else "BEGIN IMMEDIATE")

    return engine


def prepare_sqlite(connection: Any, _record: Any) -> None:
    """What each new connection to SQLite is told."""
    for pragma in ("journal_mode=WAL", "foreign_keys=ON", f"busy_timeout={BUSY_SECONDS * 1000}"):
        connection.execute(f"PRAGMA {pragma}").close()
    connection.execute(LASTING).close()


def postgresql_engine(url: URL, pool_size: int, *, pooled: bool) -> Engine:
    """Connections that are tried before they are used, and not kept for ever."""
    return create_engine(
        url,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=BUSY_SECONDS,
        pool_pre_ping=True,
        pool_recycle=1800,
        connect_args=postgresql_options(url, pooled=pooled),
    )
