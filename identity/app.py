"""The composition root: from settings to a Runtime, from a Runtime to the WSGI application. It alone knows every part."""

from __future__ import annotations

from flask import Flask

from identity import migrations
from identity.core import applications
from identity.core.credentials import Passwords
from identity.core.explain import Explanations
from identity.core.keyring import Keyring
from identity.core.limits import Limiter
from identity.core.usage import Usage
from identity.core.vault import open_vault
from identity.runtime import Clock, Entropy, Mailer, Origin, Runtime, SystemClock, SystemEntropy
from identity.settings import Settings
from identity.storage import Database
from identity.transports import mailer_for
from identity.wire import flask_mount
from identity.wire.gate import gate
from identity.wire.pipeline import Endpoint
from identity.wire.public import public
from identity.wire.s7risk import s7risk

DIALECTS = (s7risk, gate, public)


def endpoints() -> list[Endpoint]:
    """Every endpoint of the service."""
    return [endpoint for dialect in DIALECTS for endpoint in dialect.endpoints]


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
    return rt


def create_app(settings: Settings | None = None, *, runtime: Runtime | None = None) -> Flask:
    """The complete service as a WSGI application. It may be called any number of times in one process."""
    rt = runtime or create_runtime(settings)
    app = Flask("identity", static_folder=None)
    app.extensions["identity"] = rt
    flask_mount.mount(app, rt, endpoints())
    return app
