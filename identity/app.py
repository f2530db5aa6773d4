"""The composition root: from a Runtime to the WSGI application. It alone knows every dialect."""

from __future__ import annotations

from flask import Flask

from identity.opening import create_runtime
from identity.runtime import Runtime
from identity.settings import Settings
from identity.wire.dialects.admin import admin
from identity.wire.dialects.console import console
from identity.wire.dialects.documentation import with_documentation
from identity.wire.dialects.gate import gate
from identity.wire.dialects.inbox import inbox
from identity.wire.dialects.oauth import oauth
from identity.wire.dialects.public import public
from identity.wire.dialects.risksage import risksage
from identity.wire.dialects.s7risk import s7risk
from identity.wire.dialects.signalx import SCHEMA as GRAPHQL_SCHEMA
from identity.wire.dialects.signalx import signalx
from identity.wire.dialects.status import status
from identity.wire.dialects.tenant import tenant
from identity.wire.dialects.threatwinds import threatwinds
from identity.wire.dialects.welcome import welcome
from identity.wire.endpoint import Endpoint
from identity.wire.mounts import flask_mount

DIALECTS = (s7risk, signalx, risksage, threatwinds, oauth, gate, admin, tenant, welcome, public, status, inbox)


def endpoints() -> list[Endpoint]:
    """Every endpoint of the service."""
    documented = with_documentation(
        (endpoint for dialect in DIALECTS for endpoint in dialect.endpoints), graphql=GRAPHQL_SCHEMA
    )
    # No program calls the pages of the console: they are in no documentation of an interface.
    return [*documented, *console.endpoints]


def create_app(settings: Settings | None = None, *, runtime: Runtime | None = None) -> Flask:
    """The complete service as a WSGI application. It may be called any number of times in one process."""
    rt = runtime or create_runtime(settings)
    app = Flask("identity", static_folder=None)
    app.extensions["identity"] = rt
    hidden = console.endpoints if rt.settings.console == "off" else []
    flask_mount.mount(app, rt, [endpoint for endpoint in endpoints() if endpoint not in hidden])
    return app
