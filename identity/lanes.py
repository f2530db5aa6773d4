"""Hot reads of PostgreSQL on an event loop: libpq's pipeline below psycopg's cursors, on connections that psycopg made.

What a value becomes on its way there and back is psycopg's own affair (its `Transformer`), as it is for every other statement. Each
statement is followed by a sync of its own, so it is a transaction of its own: it sees whatever was committed before it was sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final

import psycopg
from psycopg.adapt import PyFormat, Transformer
from psycopg.pq import ExecStatus
from sqlalchemy import URL, create_mock_engine

from identity.aside import Channel, Channels, Elsewhere, Late
from identity.engines import STATEMENT_SECONDS
from identity.errors import UNAVAILABLE, Refused

LANES: Final = 2
"""Connections of a loop: one more than is needed, so that a statement that waits for a lock has only few behind it."""
_PATIENCE_SECONDS: Final = STATEMENT_SECONDS + 1


class Lane(Channel):
    """One connection in autocommit, in which many statements are under way."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, connection: psycopg.Connection[Any], close: Callable[[Any], None]
    ) -> None:
        self._connection = connection
        self._close = close
        self._libpq = connection.pgconn
        self._values = Transformer(connection)
        self._prepared: dict[tuple[str, tuple[int, ...]], bytes] = {}
        self._result: Any = None
        self._libpq.nonblocking = 1
        self._libpq.enter_pipeline_mode()
        super().__init__(loop, self._libpq.socket, _PATIENCE_SECONDS)

    def fetch(self, statement: str, parameters: Sequence[Any]) -> list[Any]:
        """The rows of a select with parameters `$1`, `$2`. Raises Elsewhere for whatever goes wrong, Late."""
        values = self._values
        try:
            given = values.dump_sequence(parameters, [PyFormat.AUTO] * len(parameters))
        except psycopg.Error as exc:
            raise Elsewhere from exc
        types, formats = values.types or (), values.formats
        try:
            self._send(statement, given, types, formats)
        except psycopg.Error as exc:
            self.lose(Elsewhere)
            raise Elsewhere from exc
        result = self.step_aside()
        if result.status != ExecStatus.TUPLES_OK:
            # A plan that no longer fits, a time limit: a connection of one's own tells which, and makes it good.
            self.lose(Elsewhere)
            raise Elsewhere
        if not result.ntuples:
            return []
        values.set_pgresult(result)
        return values.load_rows(0, result.ntuples, tuple)

    def _send(self, statement: str, given: Sequence[Any], types: tuple[int, ...], formats: Any) -> None:
        libpq = self._libpq
        # As psycopg does it: the same statement with other types is another one.
        name = self._prepared.get((statement, types))
        if name is None:
            name = self._prepared[statement, types] = b"lane%d" % len(self._prepared)
            libpq.send_prepare(name, statement.encode(), types)
        libpq.send_query_prepared(name, given, formats)
        libpq.pipeline_sync()
        if libpq.flush():
            # A few hundred bytes do not fit: nobody has read for a while.
            raise psycopg.OperationalError

    def receive(self) -> None:
        libpq = self._libpq
        libpq.consume_input()
        is_between = False
        while len(self) and not libpq.is_busy():
            result = libpq.get_result()
            if result is None:
                if is_between:
                    # A connection that broke while its bytes were read answers so for ever.
                    raise psycopg.OperationalError
                is_between = True
                continue
            is_between = False
            if result.status == ExecStatus.PIPELINE_SYNC:
                answer, self._result = self._result, None
                self.deliver(answer)
                if self.is_lost:
                    return
            elif self._result is None or self._result.status == ExecStatus.COMMAND_OK:
                self._result = result  # The select's, or the first error.

    def release(self) -> None:
        self._close(self._connection)


class Lanes(Channels):
    """The lanes of one loop. A statement for them is compiled for their `dialect`."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, url: URL, connect: Callable[[], Any], close: Callable[[Any], None]
    ) -> None:
        super().__init__(loop, LANES, connect, lambda loop, made: Lane(loop, made, close))
        self.dialect = create_mock_engine(url, print, paramstyle="numeric_dollar").dialect

    def fetch(self, statement: str, parameters: Sequence[Any]) -> list[Any]:
        """The rows of a select. Raises Elsewhere, Refused(UNAVAILABLE)."""
        lane: Lane = self.choose()
        try:
            return lane.fetch(statement, parameters)
        except Late as exc:
            raise Refused(UNAVAILABLE, detail="no answer in time", retry_after_seconds=1, cause=exc) from exc
