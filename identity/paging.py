"""Parts of lists: by page number, or by a cursor that neither skips nor repeats a row while others come and go.

A cursor holds the sorting key of the last row that was seen (a keyset): the next part begins behind it, however many rows were deleted
meanwhile, and costs the same at the end of a list as at its start. Only the first part counts the whole list.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from operator import itemgetter
from typing import Any, Final, Generic, TypeVar

from sqlalchemy import ColumnElement, Select, and_, func, literal, or_, select, tuple_
from sqlalchemy.orm import InstrumentedAttribute, Session

from identity.canonical import decode_base64url, encode_base64url
from identity.columns import Instant, from_micros, to_micros
from identity.errors import VALIDATION, Refused

T = TypeVar("T")
Column = InstrumentedAttribute[Any]
UNFIT_CURSOR: Final = VALIDATION.saying("after is the `next` of the part before it, of the same list")
_BEYOND: Final = "\U0010ffff"


@dataclass(frozen=True, slots=True)
class Part:
    """Which part of a list is wanted: a page by its number, or what comes after a cursor; `counts`: how long the list is, too."""

    limit: int = 50
    page: int = 1
    after: str = ""
    counts: bool = True


@dataclass(frozen=True, slots=True)
class Listed(Generic[T]):
    """A part of a list. `total` counts the whole list, and is None behind a cursor; `next` is the cursor of what follows, if any."""

    items: Sequence[T]
    total: int | None
    next: str | None

    def mapped(self, make: Callable[[Sequence[T]], Sequence[Any]]) -> Listed[Any]:
        """The same part with other items, made of these all at once."""
        return Listed(make(self.items), self.total, self.next)


def read(
    session: Session,
    query: Select[*tuple[Any, ...]],
    *key: Column,
    part: Part,
    make: Callable[..., T],
    newest_first: bool = False,
) -> Listed[T]:
    """The wanted part of `query` in the order of `key`, which names each row; `make` takes the columns of a row.

    Raises Refused(VALIDATION) for a cursor that is none of this list.
    """
    total = None
    if part.counts and not part.after:
        total = session.scalar(select(func.count()).select_from(query.with_only_columns(key[0]).subquery())) or 0
        if total == 0:
            return Listed([], 0, None)  # To look for what is nowhere may take as long as to count it.
    wanted = query.add_columns(*key).order_by(*(column.desc() if newest_first else column.asc() for column in key))
    if part.after:
        seen = tuple_(*(literal(value, column.type) for column, value in zip(key, _seen(part.after, key), strict=True)))
        behind = tuple_(*key) < seen if newest_first else tuple_(*key) > seen
        wanted = wanted.where(behind)
    else:
        wanted = wanted.offset((part.page - 1) * part.limit)
    rows = session.execute(wanted.limit(part.limit + 1)).all()
    shown = rows[: part.limit]
    following = _cursor(shown[-1][-len(key) :]) if len(rows) > part.limit else None
    return Listed([make(*row[: -len(key)]) for row in shown], total, following)


def cut(found: Iterable[T], part: Part, key: Callable[[T], tuple[Any, ...]]) -> Listed[T]:
    """The wanted part, in the order of `key`, of a list that is short enough to be read whole; `key` names each item as in `read`."""
    keyed = sorted(((_plain(key(item)), item) for item in found), key=itemgetter(0))
    if part.after:
        seen = _decoded(part.after, [type(value) for value in keyed[0][0]]) if keyed else []
        wanted = [(each, item) for each, item in keyed if each > seen]
    else:
        wanted = keyed[(part.page - 1) * part.limit :]
    shown = wanted[: part.limit]
    following = _cursor(shown[-1][0]) if len(wanted) > part.limit else None
    return Listed([item for _, item in shown], None if part.after else len(keyed), following)


def begins(column: Column, text: str, *, is_sqlite: bool) -> ColumnElement[bool]:
    """The condition that `column` begins with `text`, spelled so that an index serves: on PostgreSQL one with `text_pattern_ops`."""
    if is_sqlite:
        return and_(column >= text, column < text + _BEYOND)
    # Compared by byte, whatever the database's collation.
    return and_(column.op("~>=~", is_comparison=True)(text), column.op("~<~", is_comparison=True)(text + _BEYOND))


def begins_in_any_case(column: Column, text: str, *, is_sqlite: bool) -> ColumnElement[bool]:
    """The condition that a column with names of people or things begins with `text` as typed, or in lower, upper or title case."""
    spellings = sorted({text, text.lower(), text.upper(), text.title(), text.capitalize()})
    return or_(*(begins(column, spelling, is_sqlite=is_sqlite) for spelling in spellings))


def _cursor(values: Sequence[Any]) -> str:
    return encode_base64url(json.dumps(_plain(values), separators=(",", ":")).encode())


def _plain(values: Sequence[Any]) -> list[Any]:
    return [to_micros(value) if isinstance(value, datetime) else value for value in values]


def _seen(after: str, key: Sequence[Column]) -> list[Any]:
    kinds = [int if isinstance(column.type, Instant) or column.type.python_type is int else str for column in key]
    values = _decoded(after, kinds)
    return [
        from_micros(value) if isinstance(column.type, Instant) else value
        for column, value in zip(key, values, strict=True)
    ]


def _decoded(after: str, kinds: Sequence[type]) -> list[Any]:
    try:
        values = json.loads(decode_base64url(after) or b"")
    except (ValueError, RecursionError) as exc:
        raise Refused(UNFIT_CURSOR, field="after", cause=exc) from exc
    fits = isinstance(values, list) and [type(value) for value in values] == list(kinds)
    # Numbers that no key has: the year 9999 in microseconds, and what 63 bits hold.
    if not fits or any(isinstance(value, int) and not 0 <= value < 2**57 for value in values) or "\0" in str(values):
        raise Refused(UNFIT_CURSOR, field="after", detail="not a cursor of this list")
    return list(values)
