"""identity: an OAuth-like identity service. `create_app` builds the WSGI application."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flask import Flask

__version__ = "0.1.0"
__all__ = ["__version__", "create_app"]


def create_app(*args: Any, **kwargs: Any) -> Flask:
    """Build the service from `Settings` (default: the environment). See `identity.app.create_app`."""
    from identity.app import create_app as build  # here, so that the command line starts without Flask

    return build(*args, **kwargs)
