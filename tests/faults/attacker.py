"""Loaded by schemathesis: every request carries the credential that the test put into a file, and puts there anew all the time.

What is attacked may end the attacker's own credential; the next one is a second away.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import schemathesis

_FILE = Path(os.environ["ATTACKER_TOKEN_FILE"])


@schemathesis.auth(refresh_interval=1)
class Bearer:
    """The credential of the moment."""

    def get(self, _case: schemathesis.Case, _context: schemathesis.AuthContext) -> str:
        return _FILE.read_text()

    def set(self, case: schemathesis.Case, data: str, _context: schemathesis.AuthContext) -> None:
        case.headers = {**dict(case.headers or {}), "Authorization": f"Bearer {data}"}


__all__: list[Any] = ["Bearer"]
