"""The answers that the documentation shows: heard in the suite's own calls, so that they cannot lie.

`IDENTITY_RECORD_ANSWERS=1 pytest tests/wire tests/test_cli.py` writes `identity/wire/templates/answers.json` anew: the first good answer of
each route that any test heard. Every other run compares each good answer with what is written: a field that became another type fails the
test that heard it. `test_documentation` holds what is written to the schemas of the document.
"""

from __future__ import annotations

import functools
import json
import os
import re
from pathlib import Path
from typing import Any

from flask import Flask
from werkzeug.exceptions import HTTPException
from werkzeug.test import TestResponse

from identity.app import endpoints

ANSWERS = Path(__file__).parents[1] / "identity" / "wire" / "templates" / "answers.json"
_SECRETS = {
    "secret",
    "apiSecret",
    "bearer",
    "accessToken",
    "access_token",
    "refreshToken",
    "recoveryCodes",
    "otpauthUri",
    "token",
}
#: What holds whatever somebody put there, or whatever a check saw.
_FREE = {
    "attributes",
    "aud",
    "claims",
    "data",
    "evidence",
    "expected",
    "extensions",
    "jwks",
    "policy",
    "seen",
    "tokenClaims",
    "tenants",
}
_LONGEST = 64
_LARGEST = 2_500
_heard: dict[str, Any] = {}


@functools.cache
def written() -> dict[str, Any]:
    """What the documentation shows."""
    found: dict[str, Any] = json.loads(ANSWERS.read_text())
    return found


@functools.cache
def _names() -> dict[str, str]:
    """The name of each route in the documentation, by its rule in Flask."""
    return {
        f"{one.method} {(prefix + one.path).replace('{', '<').replace('}', '>')}": f"{one.method} {one.mounts[0]}{one.path}"
        for one in endpoints()
        for prefix in one.mounts
    }


def hear(app: Flask, method: str, path: str, answer: TestResponse) -> None:
    """Keep a good answer of a route, or compare it with the one that the documentation shows."""
    if answer.status_code not in (200, 201, 202) or not answer.is_json or not answer.data:
        return
    try:
        rule, _ = app.url_map.bind("").match(path.partition("?")[0], method)
    except HTTPException:
        return
    name = _names().get(rule)
    if name is None or path.startswith("/openapi.json"):
        return
    if _RECORDS:
        body = _shortened(answer.json)
        if name not in _heard or _worth(body) > _worth(_heard[name]["body"]):
            _heard[name] = {"status": answer.status_code, "body": body}
            _write()
    elif name in written():
        fault = _difference(written()[name]["body"], answer.json, name)
        assert not fault, f"{fault}: the documentation shows another answer; record it anew, see tests/recorded.py"


def _worth(body: Any) -> int:
    """How much an answer tells: one with lists that hold something tells more."""
    size = len(json.dumps(body))
    return size if size <= _LARGEST else 0


def _difference(shown: Any, live: Any, where: str) -> str:
    """Where two answers are of other types; null is of every type, and a field may be missing from either."""
    if shown is None or live is None:
        return ""
    if isinstance(shown, dict) and isinstance(live, dict):
        both = (shown.keys() & live.keys()) - _FREE
        shared = (_difference(shown[name], live[name], f"{where}.{name}") for name in both)
        return next(filter(None, shared), "")
    if isinstance(shown, list) and isinstance(live, list):
        return _difference(shown[0], live[0], f"{where}[0]") if shown and live else ""
    # `aud` is text where it is one.
    return "" if type(shown) is type(live) or {type(shown), type(live)} in ({str, list}, {int, float}) else where


def _shortened(value: Any, name: str = "") -> Any:
    match value:
        case dict():
            return {key: _shortened(member, key) for key, member in value.items()}
        case list():
            return [_shortened(member, name) for member in value[:2]]
        case str() if name in _SECRETS or len(value) > _LONGEST or re.match(r"eyJ|id[a-z]_", value):
            return f"{value[:12]}…"
        case _:
            return value


_RECORDS = os.environ.get("IDENTITY_RECORD_ANSWERS") == "1"


def _write() -> None:
    known = json.loads(ANSWERS.read_text()) | _heard
    whole = ANSWERS.with_suffix(f".{os.getpid()}")
    whole.write_text(json.dumps(dict(sorted(known.items())), indent=1, ensure_ascii=False) + "\n")
    whole.replace(ANSWERS)
