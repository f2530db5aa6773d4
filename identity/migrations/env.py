"""Alembic's entry: runs the migrations of this package on the connection that `identity.migrations` hands over."""

from __future__ import annotations

from typing import Any, Literal

from alembic import context

from identity.columns import Instant, Names
from identity.migrations import schema


def _render(kind: str, thing: Any, _autogen: Any) -> str | Literal[False]:
    """Write our column types as what they are in the database, so that a step of the past needs no code of the present."""
    if kind == "type" and isinstance(thing, Instant):
        return "sa.BigInteger()"
    if kind == "type" and isinstance(thing, Names):
        return "sa.Text()"
    return False


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=schema(),
    render_as_batch=True,
    render_item=_render,
)
with context.begin_transaction():
    context.run_migrations()
