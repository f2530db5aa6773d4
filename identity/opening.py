"""Opening a service: from settings to a Runtime, for the server, the worker and the command line alike. It knows no HTTP."""

from __future__ import annotations

import contextlib

from identity import migrations
from identity.ambient import Clock, Entropy, Mailer, Origin, SystemClock, SystemEntropy
from identity.core.clients import applications
from identity.instruments.hashing import Passwords
from identity.instruments.keyring import Keyring
from identity.instruments.limits import Limiter
from identity.instruments.refusals import Explanations
from identity.instruments.transports import mailer_for
from identity.instruments.usage import Usage
from identity.instruments.vault import open_vault
from identity.runtime import Runtime
from identity.settings import Settings
from identity.storage import Database


def create_runtime(
    settings: Settings | None = None,
    *,
    clock: Clock | None = None,
    entropy: Entropy | None = None,
    mailer: Mailer | None = None,
    migrate: bool = True,
) -> Runtime:
    """Open the database (migrating it, unless told not to), the vault and the key ring.

    On an empty database this makes the server's root secret, the first signing key and the standard application; any number of processes
    may do so at once. Raises BadSettings when the master key does not open what is there.
    """
    settings = settings or Settings.from_env()
    clock, entropy = clock or SystemClock(), entropy or SystemEntropy()
    database = Database(settings.database_url, pool_size=settings.threads + 4)
    with contextlib.ExitStack() as on_failure:
        on_failure.callback(database.close)
        if migrate:
            migrations.migrate(database)
        vault = open_vault(settings, entropy)
        vault.load_root(database, Origin.background(), clock.now())
        ring = Keyring(settings, clock, database, vault)
        ring.ensure_first()
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
        )
        applications.ensure_standard(rt)
        on_failure.pop_all()
    return rt
