"""Group J: the status lists, for verifiers that never call us otherwise (IETF draft Token Status List).

What they say is made in the background. A request is answered from memory, as often as anybody asks, while the database is down too.
"""

from __future__ import annotations

import re
from typing import Final

from marshmallow import Schema, fields

from identity.errors import NOT_FOUND, Refused
from identity.wire.endpoint import Call, Dialect, Reply
from identity.wire.head import accepts_gzip, is_known

status = Dialect("J: the status of tokens", ignores_query=True)

_NUMBER: Final = re.compile(r"0|[1-9][0-9]{0,9}", re.ASCII)
_TYPE: Final = "application/statuslist+jwt"


class StatusLists(Schema):
    """Every list that a living token can name."""

    status_lists = fields.List(fields.Url(), required=True)


@status.endpoint(
    "GET",
    "/.well-known/status-lists/{id}",
    hot=True,
    cacheable=True,
    any_origin=True,
    ignores_body=True,
    produces=_TYPE,
    refusals=(NOT_FOUND,),
)
def status_list(call: Call) -> Reply:
    """A status list, signed; cache it for its `ttl`."""
    name = call.params["id"]
    found = call.rt.status_lists.find(int(name)) if _NUMBER.fullmatch(name) else None
    if found is None:
        raise Refused(NOT_FOUND, detail="no such status list, or none that a living token names")
    headers = (*_public(call), ("ETag", found.etag), ("Vary", "Accept-Encoding"))
    if is_known(call.header("if-none-match"), found.etag):
        return Reply(raw=b"", status=304, headers=headers)
    if accepts_gzip(call.header("accept-encoding")):
        return Reply(raw=found.gzipped, headers=(*headers, ("Content-Encoding", "gzip")), content_type=_TYPE)
    return Reply(raw=found.body, headers=headers, content_type=_TYPE)


@status.endpoint(
    "GET", "/.well-known/status-lists", answer=StatusLists, hot=True, cacheable=True, any_origin=True, ignores_body=True
)
def status_lists(call: Call) -> Reply:
    """Where the status lists are that a living token can name."""
    return Reply({"status_lists": call.rt.status_lists.uris()}, headers=_public(call))


def _public(call: Call) -> tuple[tuple[str, str], ...]:
    return (("Cache-Control", f"public, max-age={call.rt.settings.status_ttl_seconds}"),)
