"""How lists are asked for and told, and how changes are guarded; shared by the dialects that have both."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final, TypeVar

from identity import documents, paging
from identity.documents import Document
from identity.errors import VALIDATION, Refused
from identity.paging import Part
from identity.wire.endpoint import Call, Reply

PAGING: Final = ("limit", "page", "after")
_MAX_PAGE: Final = 1_000_000
_WHOLE: Final = re.compile(r"[0-9]{1,7}", re.ASCII)
_TAG: Final = re.compile(r'"([0-9]{1,18})"', re.ASCII)
_T = TypeVar("_T")


def one(call: Call, name: str) -> str | None:
    """The only value of a query parameter, or None."""
    values = call.query.get(name, [])
    if len(values) > 1:
        raise Refused(VALIDATION.saying("A query parameter must not be sent twice"), field=name)
    return values[0] if values else None


def flag(call: Call, name: str) -> bool:
    """Whether the query says `name=true`."""
    text = one(call, name)
    if text not in (None, "true", "false"):
        raise Refused(VALIDATION.saying(f"{name} is true or false"), field=name)
    return text == "true"


def whole(call: Call, name: str, *, default: int, most: int) -> int:
    """The whole number in a query parameter, from 1 to `most`."""
    text = one(call, name)
    if text is None:
        return default
    if not _WHOLE.fullmatch(text) or not 1 <= int(text) <= most:
        raise Refused(VALIDATION.saying(f"{name} is from 1 to {most}"), field=name)
    return int(text)


def page(
    call: Call, plural: str, document: Callable[[_T], Document], find: Callable[[Part], paging.Listed[_T]]
) -> Reply:
    """The part that the query asks for of what `find` finds."""
    limit = whole(call, "limit", default=50, most=200)
    after = one(call, "after") or ""
    if after and "page" in call.query:
        raise Refused(VALIDATION.saying("Give a page or a cursor, not both"), field="after")
    part = Part(limit, whole(call, "page", default=1, most=_MAX_PAGE), after)
    return Reply(documents.page(plural, find(part), document, limit=limit))


def renamed(body: dict[str, Any], **names: str) -> dict[str, Any]:
    """The body with the domain's names for its fields."""
    return {names.get(name, name): value for name, value in body.items()}


def changes_of(call: Call) -> dict[str, Any]:
    """The body, which must name something to change."""
    if not call.body:
        raise Refused(VALIDATION.saying("The body names nothing to change"))
    return call.body


def seen_versions(call: Call) -> frozenset[int] | None:
    """The versions that `If-Match` names (RFC 9110 section 13.1.1), or None where any will do."""
    asked = call.header("if-match")
    if asked is None or asked.strip() == "*":
        return None
    tags = [_TAG.fullmatch(each.strip()) for each in asked.split(",")]
    # A tag that we never gave out names no version that there is.
    return frozenset(int(tag[1]) for tag in tags if tag)


def tagged(document: Document, version: int) -> Reply:
    """A document whose `ETag` is its version."""
    return Reply(document, headers=(("ETag", f'"{version}"'),))
