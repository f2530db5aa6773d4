"""The composition root: from a Runtime to the WSGI application. It alone knows every dialect."""

from __future__ import annotations

from flask import Flask

from identity.opening import create_runtime
from identity.runtime import Runtime
from identity.settings import Settings
from identity.wire import flask_mount
from identity.wire.admin import admin
from identity.wire.documentation import with_documentation
from identity.wire.gate import gate
from identity.wire.inbox import inbox
from identity.wire.oauth import oauth
from identity.wire.pipeline import Endpoint
from identity.wire.public import public
from identity.wire.risksage import risksage
from identity.wire.s7risk import s7risk
from identity.wire.signalx import signalx
from identity.wire.threatwinds import threatwinds

DIALECTS = (s7risk, signalx, risksage, threatwinds, oauth, gate, admin, public, inbox)


def endpoints() -> list[Endpoint]:
    """Every endpoint of the service."""
    return with_documentation(endpoint for dialect in DIALECTS for endpoint in dialect.endpoints)


def create_app(settings: Settings | None = None, *, runtime: Runtime | None = None) -> Flask:
    """The complete service as a WSGI application. It may be called any number of times in one process."""
    rt = runtime or create_runtime(settings)
    app = Flask("identity", static_folder=None)
    app.extensions["identity"] = rt
    flask_mount.mount(app, rt, endpoints())
    return app
