"""How values of ours stand in columns: moments, sets of names, and what a query may ask of them. One meaning on every database."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Dialect, Text, literal, type_coerce
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import InstrumentedAttribute
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeDecorator

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def to_micros(moment: datetime) -> int:
    """Microseconds since the epoch, exactly."""
    return (moment - _EPOCH) // _MICROSECOND


def from_micros(micros: int) -> datetime:
    """The aware UTC time of `to_micros`."""
    return _EPOCH + timedelta(microseconds=micros)


class Instant(TypeDecorator[datetime]):
    """An aware datetime, stored as microseconds since the epoch: one meaning on every database, and cheap to compare."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:
        return None if value is None else to_micros(value)

    def process_result_value(self, value: int | None, dialect: Dialect) -> datetime | None:
        return self.read(value)

    @staticmethod
    def read(value: int | None) -> datetime | None:
        """The moment that a stored number stands for."""
        return None if value is None else _EPOCH + timedelta(0, 0, value)


class Names(TypeDecorator[tuple[str, ...]]):
    """A sorted set of names without spaces (roles, scopes, audiences), stored as one line of text."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Sequence[str] | None, dialect: Dialect) -> str | None:
        return None if value is None else " ".join(sorted(set(value)))

    def process_result_value(self, value: str | None, dialect: Dialect) -> tuple[str, ...]:
        return self.read(value)

    @staticmethod
    def read(value: str | None) -> tuple[str, ...]:
        """The names in a stored line."""
        return tuple(value.split()) if value else ()


class Ordered(Names):
    """Names without spaces in the order in which they were given, stored as one line of text."""

    cache_ok = True

    def process_bind_param(self, value: Sequence[str] | None, dialect: Dialect) -> str | None:
        return None if value is None else " ".join(dict.fromkeys(value))


def holds(column: InstrumentedAttribute[tuple[str, ...]], name: str) -> ColumnElement[bool]:
    """The condition that a column of Names has exactly this one among them."""
    spaced = literal(" ", Text) + type_coerce(column, Text) + literal(" ", Text)
    return spaced.contains(f" {name} ", autoescape=True)


class Lines(FunctionElement[str]):
    """The values of a text column in the selected rows, one a line: an aggregate that each database spells in its own way."""

    inherit_cache = True
    type = Text()


@compiles(Lines)
def _spell_lines(element: Lines, compiler: SQLCompiler, **options: Any) -> str:
    aggregate, line_feed = (
        ("group_concat", "char(10)") if compiler.dialect.name == "sqlite" else ("string_agg", "chr(10)")
    )
    return f"{aggregate}({compiler.process(element.clauses, **options)}, {line_feed})"
