"""Opening a service: from settings to a Runtime, for the server, the worker and the command line alike. It knows no HTTP."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from identity import logs, migrations
from identity.ambient import Clock, Entropy, Mailer, Origin, SystemClock, SystemEntropy
from identity.core.clients import applications
from identity.errors import UNAVAILABLE, Refused
from identity.files import tighten
from identity.instruments.epochs import Memory
from identity.instruments.hashing import Passwords
from identity.instruments.issuers import Issuers
from identity.instruments.key_shapes import KeyShapes
from identity.instruments.keyring import Keyring
from identity.instruments.limits import Limiter, embedded_folder
from identity.instruments.refusals import Explanations
from identity.instruments.statuslists import StatusLists
from identity.instruments.transports import mail_directory, mailer_for
from identity.instruments.usage import Usage
from identity.instruments.vault import has_root, key_file, open_vault
from identity.runtime import Runtime
from identity.settings import Settings
from identity.storage import Database

_SHOWN: Final = 20
_PATIENCE_SECONDS: Final = 60
_BREATH_SECONDS: Final = 0.2
_log: Final = logging.getLogger("identity.files")


def create_runtime(
    settings: Settings | None = None,
    *,
    clock: Clock | None = None,
    entropy: Entropy | None = None,
    mailer: Mailer | None = None,
    migrate: bool = True,
    unseen: bool = False,
) -> Runtime:
    """Open the database, the vault and the key ring.

    `migrate`: bring the database up to date, and on an empty one make the master key, the server's root secret, the first signing key and
    the standard application; any number of processes may do so at once. Without it nothing is made that is not there, and BadSettings
    says what was wanted. `unseen`: of a database that is being restored, and still passes for an empty one. Raises BadSettings, too, when
    the master key does not open what is there.
    """
    settings = settings or Settings.from_env()
    clock, entropy = clock or SystemClock(), entropy or SystemEntropy()
    database = Database(
        settings.database_url, pool_size=settings.threads + 4, creates=migrate, is_pooled=settings.is_pooled
    )
    with contextlib.ExitStack() as on_failure:
        on_failure.callback(database.close)
        if migrate:
            _keep_private(settings, database)
            migrations.migrate(database)
        elif not unseen:
            migrations.require(database)
        vault = open_vault(settings, entropy, makes_key=migrate and not has_root(database))
        _in_turn(lambda: vault.load_root(database, Origin.background(), clock.now()))
        ring = Keyring(settings, clock, database, vault)
        _in_turn(ring.ensure_first)
        rt = Runtime(
            settings=settings,
            clock=clock,
            entropy=entropy,
            database=database,
            mailer=mailer or mailer_for(settings),
            ring=ring,
            passwords=Passwords(settings),
            limiter=Limiter(settings),
            usage=Usage(),
            explanations=Explanations(),
            memory=Memory(database, entropy.bytes(32)),
            issued=Memory(database, entropy.bytes(32)),
            issuers=Issuers(settings.trusted_issuers),
            key_shapes=KeyShapes(database),
            status_lists=StatusLists(settings, clock, database, ring),
        )
        _in_turn(lambda: applications.ensure_standard(rt))
        applications.standard_client(rt)  # Now, so that no unit has to read it.
        on_failure.pop_all()
    return rt


def _in_turn(ensure: Callable[[], None]) -> None:
    """Make what a first start makes; while others make it, wait: the last of twenty starts waits for nineteen, longer than a request may.

    Raises Refused(UNAVAILABLE) when the database could not be written for a minute.
    """
    patience_ends_at = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            return ensure()
        except Refused as refused:
            if refused.problem.code != UNAVAILABLE.code or time.monotonic() >= patience_ends_at:
                raise
        time.sleep(_BREATH_SECONDS)


def _keep_private(settings: Settings, database: Database) -> None:
    """Tighten what is looser than we make it, and say so: once, as it is tight from then on."""
    done, left = tighten(_private(settings, database))
    for name, paths in (("others could read these, now they cannot", done), ("others may read these", left)):
        if paths:
            logs.event(_log, logging.WARNING, name, count=len(paths), paths=paths[:_SHOWN])


def _private(settings: Settings, database: Database) -> Iterator[Path]:
    """The files and folders that are nobody else's to read, as far as they are there."""
    limits = embedded_folder(settings)
    key = key_file(settings)
    mail = mail_directory(settings)
    if limits.parent == Path("var").absolute():
        yield limits.parent
    if database.file is not None:
        yield from (database.file.with_name(database.file.name + ending) for ending in ("", "-wal", "-shm", "-journal"))
    yield from (limits, *limits.glob("*"))
    yield from (key.parent, key, *key.parent.glob("*.pem"))
    if mail is not None:
        yield from (mail, *mail.glob("*.eml"))
