"""Whatever bytes arrive, over a real socket: refused in the envelope, never 5xx, and the next request works or the connection closes."""

from __future__ import annotations

import json
import re
import time
from typing import Any
from uuid import uuid4

import jwt
import pytest
from marshmallow import Schema, fields

from identity.app import endpoints
from identity.wire.endpoint import Endpoint, Reads, Request
from identity.wire.fields import Code, Flag, Text, Whole
from identity.wire.head import client_address, networks_of
from tests.builders import a_token, a_user, an_application
from tests.conftest import fresh_database
from tests.wire.sockets import Heard, Wire, get, post
from tests.world import Live, start_live

PATHS = ("/user/token", "/application/token")  # on Flask, and on the fast lane
HEAD = b"POST /user/token HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


def refusal(answer: Heard | None, status: int | tuple[int, ...], code: str) -> None:
    """This answer refuses with `code` in the envelope, and its headers say the same."""
    assert answer is not None
    allowed = (status,) if isinstance(status, int) else status
    assert answer.status in allowed, (answer.status, answer.body)
    assert answer.json["error"] == code
    assert answer.json["status"] == answer.status
    assert answer.json["message"] == answer.headers["x-error"]
    assert re.fullmatch(r"[\x20-\x7e]{1,200}", answer.headers["x-error"])
    assert re.fullmatch(
        r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", answer.headers["x-error-id"]
    )
    assert answer.headers["x-request-id"]


# Bodies.

MALFORMED = {
    "half an object": b'{"email": "a@b.co"',
    "two objects": b"{}{}",
    "no object": b"[]",
    "a string": b'"x"',
    "null": b"null",
    "depth 5000 of lists": b"[" * 5000 + b"]" * 5000,
    "depth 5000 inside": b'{"email":' + b"[" * 5000 + b"]" * 5000 + b"}",
    "depth 5000 of objects": b'{"a":' * 5000 + b"1" + b"}" * 5000,
    "depth 5000 unclosed": b"[" * 5000,
    "depth 21": b'{"email":' * 20 + b"[]" + b"}" * 20,
    "a duplicate key": b'{"email":"a@b.co","email":"a@b.co","password":"x"}',
    "a duplicate key by escape": b'{"email":"a@b.co","\\u0065mail":"a@b.co","password":"x"}',
    "a duplicate key deeper": b'{"email":{"a":1,"a":1},"password":"x"}',
    "NaN": b'{"email":NaN}',
    "Infinity": b'{"email":Infinity}',
    "minus Infinity": b'{"email":-Infinity}',
    "1e999": b'{"email":1e999}',
    "an integer of 5000 digits": b'{"email":' + b"9" * 5000 + b"}",
    "a lone surrogate": b'{"email":"\\ud800","password":"x"}',
    "a lone low surrogate": b'{"email":"a\\udc00","password":"x"}',
    "a surrogate in a key": b'{"\\ud800":"x"}',
    "an escaped NUL": b'{"email":"a\\u0000b","password":"x"}',
    "a NUL in a key": b'{"a\\u0000":"x"}',
    "a raw NUL": b'{"email":"a\0b","password":"x"}',
    "UTF-16": '{"email":"a@b.co","password":"x"}'.encode("utf-16"),
    "UTF-16 without a mark": '{"email":"a@b.co","password":"x"}'.encode("utf-16-le"),
    "UTF-32": '{"email":"a@b.co","password":"x"}'.encode("utf-32"),
    "a byte order mark": b'\xef\xbb\xbf{"email":"a@b.co","password":"x"}',
    "broken UTF-8": b'{"email":"\xff\xfe","password":"x"}',
    "overlong UTF-8": b'{"email":"\xc0\xaf","password":"x"}',
    "surrogates in UTF-8": b'{"email":"\xed\xa0\x80","password":"x"}',
    "a comment": b'{"email":"a@b.co"/* */}',
    "a trailing comma": b'{"email":"a@b.co",}',
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_body_that_is_no_plain_json_object_is_malformed(live: Live, path: str, body: bytes) -> None:
    with Wire(live) as wire:
        refusal(wire.ask(post(path, body)), 400, "MALFORMED_REQUEST")
        assert wire.is_sound()


@pytest.mark.parametrize("path", PATHS)
def test_no_body_at_all_names_the_field_that_is_missing(live: Live, path: str) -> None:
    """With and without a media type: many a client sends none where it sends nothing."""
    for request in (post(path, b""), f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode()):
        with Wire(live) as wire:
            refusal(wire.ask(request), 422, "VALIDATION_ERROR")
            assert wire.is_sound()


@pytest.mark.parametrize("path", PATHS)
def test_depth_twenty_is_read(live: Live, path: str) -> None:
    with Wire(live) as wire:
        refusal(wire.ask(post(path, b'{"email":' * 19 + b"[]" + b"}" * 19)), 422, "VALIDATION_ERROR")


@pytest.mark.parametrize("path", PATHS)
def test_a_surrogate_pair_is_text(live: Live, path: str) -> None:
    with Wire(live) as wire:
        refusal(
            wire.ask(post(path, b'{"clientId":"\\ud83d\\ude00","secret":"\xf0\x9f\x98\x80"}')),
            (401, 422),
            "INVALID_CREDENTIALS" if path != PATHS[0] else "VALIDATION_ERROR",
        )


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("length", "status"), [(65535, 422), (65536, 422), (65537, 413), (10 * 1024 * 1024, 413)])
def test_bodies_over_64_kib_are_too_large(live: Live, path: str, length: int, status: int) -> None:
    body = b'{"x":"' + b"a" * (length - 8) + b'"}'
    assert len(body) == length
    with Wire(live) as wire:
        refusal(wire.ask(post(path, body)), status, "VALIDATION_ERROR" if status == 422 else "PAYLOAD_TOO_LARGE")
        assert wire.is_sound()


@pytest.mark.parametrize(
    "content_type",
    [
        "",
        "text/plain",
        "multipart/form-data; boundary=x",
        "application/x-www-form-urlencoded",
        "application/json; charset=utf-16",
        "application/json; charset=latin-1",
        "application/jsonx",
        "application/json, text/plain",
        "application/json; charset",
        "\xff",
    ],
)
@pytest.mark.parametrize("path", PATHS)
def test_other_media_are_refused_unread(live: Live, path: str, content_type: str) -> None:
    started = time.monotonic()
    body = b"--x\r\nContent-Disposition: form-data; name=a\r\n\r\nb\r\n" * 1001
    with Wire(live) as wire:
        refusal(wire.ask(post(path, body, content_type=content_type)), 415, "UNSUPPORTED_MEDIA_TYPE")
        assert wire.is_sound()
    assert time.monotonic() - started < 3


@pytest.mark.parametrize(
    "content_type", ["application/json; charset=utf-8", 'Application/JSON;charset="UTF-8"', "application/json;v=1"]
)
def test_parameters_of_the_media_type_are_read(live: Live, content_type: str) -> None:
    with Wire(live) as wire:
        refusal(wire.ask(post("/user/token", b"{}", content_type=content_type)), 422, "VALIDATION_ERROR")


def test_unknown_fields_are_refused_and_named_only_when_harmless(live: Live) -> None:
    with Wire(live) as wire:
        answer = wire.ask(post("/user/token", b'{"email":"a@b.co","password":"x","roles":["users_admin"]}'))
        refusal(answer, 422, "VALIDATION_ERROR")
        assert answer.json["field"] == "roles"
        answer = wire.ask(
            post("/user/token", '{"email":"a@b.co","password":"x","r\u00f6les\\r\\nX-Evil: 1":1}'.encode())
        )
        refusal(answer, 422, "VALIDATION_ERROR")
        assert "field" not in answer.json


# Wrong types, for every field of every body that any route reads.


def wrong_values(field: fields.Field) -> list[Any]:
    """Values that no field of this type may take."""
    wrong: list[Any] = [{"a": 1}, [[]], [{}], 1.5, 10**30]
    if isinstance(field, Code):
        wrong += [True, 10**6, -1, []]
    elif isinstance(field, Text | fields.String):
        wrong += [True, 1, []]
    elif isinstance(field, Whole | fields.Integer):
        wrong += [True, "1", [], " "]
    elif isinstance(field, Flag | fields.Boolean):
        wrong += [0, 1, "true", []]
    elif isinstance(field, fields.List):
        wrong += ["x", 1, True, [1], [None]]
    elif isinstance(field, fields.Nested | fields.Dict | fields.Mapping):
        wrong = [value for value in wrong if not isinstance(value, dict)] + ["x", 1, True]
    else:
        wrong = []
    return [*wrong, None] if field.required else wrong


def plausible(field: fields.Field) -> Any:
    """A value of the right type."""
    if isinstance(field, Whole | fields.Integer):
        return 1
    if isinstance(field, Flag | fields.Boolean):
        return False
    if isinstance(field, fields.List):
        return []
    if isinstance(field, fields.Nested | fields.Dict | fields.Mapping):
        return {}
    return "x"


JSON_ENDPOINTS = [endpoint for endpoint in endpoints() if endpoint.body is not None and not endpoint.form]


@pytest.fixture(scope="module")
def admin(live: Live) -> str:
    """A fresh administrator's token."""
    return a_token(live.rt, a_user(live.rt, email="root@acme.example", alias="root", roles=("users_admin",)))


@pytest.mark.parametrize("endpoint", JSON_ENDPOINTS, ids=lambda endpoint: endpoint.name)
def test_wrong_types_are_refused_for_every_field(live: Live, admin: str, endpoint: Endpoint) -> None:
    assert endpoint.body is not None
    schema: Schema = endpoint.body()
    path = endpoint.mounts[0] + re.sub(r"\{[^}]*\}", str(uuid4()), endpoint.path)
    right = {field.data_key or name: plausible(field) for name, field in schema.fields.items() if field.required}
    credential = () if endpoint.reads in (Reads.NOTHING, Reads.CLIENT) else (f"Authorization: Bearer {admin}",)
    with Wire(live) as wire:
        for name, field in schema.fields.items():
            for wrong in wrong_values(field):
                body = json.dumps(right | {field.data_key or name: wrong}).encode()
                request = post(path, body, *credential).replace(b"POST ", endpoint.method.encode() + b" ", 1)
                answer = wire.ask(request)
                assert answer is not None
                assert 400 <= answer.status < 500, (name, wrong, answer)
                assert answer.headers["x-error-id"], (name, wrong, answer)
                if endpoint.reads is not Reads.KEY:
                    assert answer.status in (400, 422), (name, wrong, answer.body)
        assert wire.is_sound()


@pytest.mark.parametrize("endpoint", JSON_ENDPOINTS, ids=lambda endpoint: endpoint.name)
def test_every_body_route_refuses_the_common_tricks(live: Live, admin: str, endpoint: Endpoint) -> None:
    path = endpoint.mounts[0] + re.sub(r"\{[^}]*\}", str(uuid4()), endpoint.path)
    credential = () if endpoint.reads in (Reads.NOTHING, Reads.CLIENT) else (f"Authorization: Bearer {admin}",)
    for body in (b"[" * 5000, b'{"a":"\\ud800"}', b'{"a":NaN}', b'{"a":1,"a":2}', b'{"noSuchField":1}', b"\xff"):
        with Wire(live) as wire:
            answer = wire.ask(post(path, body, *credential).replace(b"POST ", endpoint.method.encode() + b" ", 1))
            assert answer is not None
            assert answer.status in ((400, 401, 422) if endpoint.reads is Reads.KEY else (400, 422)), answer
            assert answer.headers["x-error-id"]
            assert wire.is_sound()


# Framing (row 21): what two parsers could read in two ways is refused by ours, in the envelope, and the connection ends.

FRAMING = {
    "length and chunked": HEAD + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "two equal lengths": HEAD + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
    "two lengths": HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "a list of lengths": HEAD + b"Content-Length: 2, 2\r\n\r\n{}",
    "a signed length": HEAD + b"Content-Length: +2\r\n\r\n{}",
    "a negative length": HEAD + b"Content-Length: -1\r\n\r\n{}",
    "an unknown coding": HEAD + b"Transfer-Encoding: xchunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "a line feed in a chunk extension": HEAD + b"Transfer-Encoding: chunked\r\n\r\n2;\n\r\n{}\r\n0\r\n\r\n",
    "an open quote in a chunk extension": HEAD + b'Transfer-Encoding: chunked\r\n\r\n2;a="\r\n{}\r\n0\r\n\r\n',
    "a NUL in a chunk extension": HEAD + b"Transfer-Encoding: chunked\r\n\r\n2;\0\r\n{}\r\n0\r\n\r\n",
    "a chunk size that is none": HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
    "a later chunk size that is none": HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\nzz\r\n}\r\n0\r\n\r\n",
    "obsolete folding": b"GET /health/live HTTP/1.1\r\nHost: x\r\nX-A: b\r\n c\r\n\r\n",
    "bare line feeds": b"GET /health/live HTTP/1.1\nHost: x\n\n",
    "a space before the colon": b"GET /health/live HTTP/1.1\r\nHost : x\r\n\r\n",
    "two hosts": b"GET /health/live HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
    "two content types": post("/user/token", b"{}", "Content-Type: text/plain"),
    "a NUL in a header": b"GET /health/live HTTP/1.1\r\nHost: x\r\nX-A: a\0b\r\n\r\n",
    "a CR in a header": b"GET /health/live HTTP/1.1\r\nHost: x\r\nX-A: a\rX-B: b\r\n\r\n",
    "a method in small letters": b"get /health/live HTTP/1.1\r\nHost: x\r\n\r\n",
    "an unknown version": b"GET /health/live HTTP/9.9\r\nHost: x\r\n\r\n",
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "raw UTF-8 in the path": b"GET /\xc3\xa9 HTTP/1.1\r\nHost: x\r\n\r\n",
}


@pytest.mark.parametrize("data", FRAMING.values(), ids=FRAMING.keys())
def test_ambiguous_framing_is_refused_and_ends_the_connection(live: Live, data: bytes) -> None:
    with Wire(live) as wire:
        refusal(wire.ask(data), (400, 501), "MALFORMED_REQUEST")
        assert wire.hear() is None


def test_a_smuggled_request_is_never_served(live: Live) -> None:
    inner = b"GET /health/ready HTTP/1.1\r\nHost: x\r\n\r\n"
    length = str(len(inner) + 5).encode()
    with Wire(live) as wire:
        wire.say(HEAD, b"Content-Length: ", length, b"\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", inner)
        refusal(wire.hear(), 400, "MALFORMED_REQUEST")
        assert wire.hear() is None


def test_an_unread_body_is_never_read_as_the_next_request(live: Live) -> None:
    inner = get("/health/live")
    with Wire(live) as wire:
        answer = wire.ask(b"GET /health/live HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(inner) + inner)
        assert answer is not None
        assert answer.status in (200, 415)
        assert wire.is_sound()


@pytest.mark.parametrize("path", PATHS)
def test_chunked_bodies_are_read(live: Live, path: str) -> None:
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    with Wire(live) as wire:
        refusal(wire.ask(head + b"1\r\n{\r\n1\r\n}\r\n0\r\n\r\n"), 422, "VALIDATION_ERROR")
        refusal(wire.ask(head + b"1;a=b\r\n{\r\n1\r\n}\r\n0\r\nX-Trailer: a\r\n\r\n"), 422, "VALIDATION_ERROR")
        refusal(wire.ask(head + b"10000\r\n" + b"a" * 65536 + b"\r\n1\r\na\r\n0\r\n\r\n"), 413, "PAYLOAD_TOO_LARGE")


# The request head.


@pytest.mark.parametrize(
    "data",
    [
        b"GET /health/live HTTP/1.1\r\n\r\n",
        b"GET /nowhere HTTP/1.1\r\n\r\n",
        b"POST /application/token HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
        b"GET /health/live HTTP/1.1\r\nHost: \r\n\r\n",
        b"GET /health/live HTTP/1.1\r\nHost: a/../b@c\r\n\r\n",
        b"GET /health/live HTTP/1.1\r\nHost: a,b\r\n\r\n",
        b"GET /health/live HTTP/1.1\r\nHost: \xc3\xa9.example\r\n\r\n",
        b"GET http://evil.example/health/live HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET http://x/health/live HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET //health/live HTTP/1.1\r\nHost: x\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
        b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /health%00/live HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
def test_a_missing_or_invalid_host_and_other_target_forms_are_refused(live: Live, data: bytes) -> None:
    with Wire(live) as wire:
        refusal(wire.ask(data), 400, "MALFORMED_REQUEST")
        assert wire.is_sound()


@pytest.mark.parametrize("host", ["x", "x:8000", "127.0.0.1:8000", "[::1]:8000", "auth.acme.example"])
def test_every_proper_host_is_served(live: Live, host: str) -> None:
    with Wire(live) as wire:
        answer = wire.ask(f"GET /health/live HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        assert answer is not None
        assert answer.status == 200


@pytest.mark.parametrize(
    "path",
    ["/%0d%0aX-Evil:%201", "/%ff%fe", "/%zz", "/..%2f..%2fetc/passwd", "/health/../health/live", "/" + "a/" * 500],
)
def test_strange_paths_are_not_found(live: Live, path: str) -> None:
    with Wire(live) as wire:
        answer = wire.ask(get(path))
        refusal(answer, 404, "NOT_FOUND")
        assert answer is not None
        assert "x-evil" not in answer.headers
        assert wire.is_sound()


@pytest.mark.parametrize("query", ["%ff=1", "a=%00", "a", "a=1;b", "&".join(f"a{n}=1" for n in range(101))])
def test_malformed_queries_are_refused(live: Live, query: str) -> None:
    with Wire(live) as wire:
        answer = wire.ask(get(f"/verify?{query}"))
        assert answer is not None
        assert answer.status in (400, 422), answer.body
        assert wire.is_sound()


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (get("/health/live", "X-A: " + "a" * 10_240), 200),
        (get("/health/live", "X-A: " + "a" * 20_480), 431),
        (get("/health/live", *(f"X-{number}: a" for number in range(100))), 431),
        (get("/" + "a" * 9000), 414),
        (get("/health/live", "Authorization: Bearer " + "a" * 1_048_576), 431),
    ],
    ids=["10 KB header", "20 KB header", "100 headers", "9 KB path", "1 MB bearer"],
)
def test_large_heads_are_read_or_refused(live: Live, data: bytes, status: int) -> None:
    with Wire(live) as wire:
        answer = wire.ask(data)
        assert answer is not None
        assert answer.status == status
        if status != 200:
            refusal(answer, status, "MALFORMED_REQUEST")
        assert wire.is_sound()


def test_a_huge_bearer_leaves_a_short_log_line_without_it(live: Live) -> None:
    before = live.log.stat().st_size
    with Wire(live) as wire:
        wire.ask(get("/health/live", "Authorization: Bearer " + "hunter2" * 150_000))
    time.sleep(0.5)
    added = live.log.read_bytes()[before:]
    assert b"hunter2" not in added
    assert all(len(line) <= 1024 for line in added.splitlines())


def test_an_upgrade_request_is_answered_as_a_plain_one(live: Live) -> None:
    key = (
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    )
    h2c = ("Upgrade: h2c", "Connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: AAMAAABkAAQAAP__")
    for headers in (key, h2c):
        with Wire(live) as wire:
            answer = wire.ask(get("/health/live", *headers))
            assert answer is not None
            assert answer.status == 200


@pytest.mark.parametrize("given", ["a b", "x" * 129, "\xe9", "<script>", "a\tb", ""])
def test_a_strange_request_id_is_replaced(live: Live, given: str) -> None:
    with Wire(live) as wire:
        answer = wire.ask(get("/health/live", f"X-Request-Id: {given}"))
        assert answer is not None
        assert re.fullmatch(r"[0-9a-f-]{36}", answer.headers["x-request-id"])


@pytest.mark.parametrize("given", ["a", "x" * 128, "Trace_1.2-3"])
def test_a_proper_request_id_is_kept(live: Live, given: str) -> None:
    with Wire(live) as wire:
        for path in ("/health/live", "/nowhere"):
            answer = wire.ask(get(path, f"X-Request-Id: {given}"))
            assert answer is not None
            assert answer.headers["x-request-id"] == given


# What is reflected (row 22): nothing that a client sends gets into a header.

EVIL = ["a\\r\\nX-Evil: 1", "a\\nX-Evil: 1", "a\\u000bb", "\\u2713", "a\\u007fb", "\\u0085"]


@pytest.mark.parametrize("evil", EVIL)
@pytest.mark.parametrize("path", PATHS)
def test_no_input_splits_or_breaks_the_answer(live: Live, path: str, evil: str) -> None:
    for name in ("email", "password", "clientId", "secret", evil):
        body = f'{{"email":"a@b.co","password":"x","clientId":"c","secret":"s","{name}":"{evil}"}}'
        if name in ("email", "password", "clientId", "secret"):
            mine = ("email", "password") if path == PATHS[0] else ("clientId", "secret")
            body = json.dumps(dict.fromkeys(mine, "x")).replace('"x"', f'"{evil}"')
        with Wire(live) as wire:
            answer = wire.ask(post(path, body.encode()))
            assert answer is not None
            refusal(answer, (401, 422), answer.json["error"])
            assert "x-evil" not in answer.headers
            assert wire.is_sound()


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "https://a.example/path",
        "https://user@a.example",
        "javascript:alert(1)",
        "https://a.example, https://b.example",
        "\xe9",
        "",
    ],
)
def test_a_malformed_origin_is_refused_and_never_reflected(live: Live, origin: str) -> None:
    with Wire(live) as wire:
        answer = wire.ask(post("/user/token", b'{"email":"a@b.co","password":"x"}', f"Origin: {origin}"))
        refusal(answer, 422, "VALIDATION_ERROR")
        assert answer is not None
        assert answer.json["field"] == "Origin"
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_no_origin_is_ever_allowed_to_read_with_credentials(live: Live) -> None:
    with Wire(live) as wire:
        for origin in ("https://good.evil", "http://127.0.0.1:8000"):
            answer = wire.ask(post("/user/token", b'{"email":"a@b.co","password":"x"}', f"Origin: {origin}"))
            assert answer is not None
            assert not [name for name in answer.headers if name.startswith("access-control")]
            assert origin not in "".join(answer.headers.values())


# Forwarded headers (rows 23 to 26).

STRANGE_HOPS = [
    "a",
    "",
    "1.2.3.4, x",
    "x, 1.2.3.4",
    ",",
    "1.2.3.4:80",
    "unix:",
    "::1%evil",
    "a" * 10_000,
    "127.0.0.1",
    "0x7f.1",
    "\xe9",
]


@pytest.mark.parametrize("hops", STRANGE_HOPS)
def test_a_strange_forwarded_header_never_skips_the_password(live: Live, hops: str) -> None:
    ada = {"email": f"{uuid4()}@acme.example", "password": "wrong"}
    with Wire(live) as wire:
        refusal(
            wire.ask(post("/user/token", json.dumps(ada).encode(), f"X-Forwarded-For: {hops}")),
            401,
            "INVALID_CREDENTIALS",
        )
        assert wire.is_sound()


@pytest.fixture(scope="module")
def proxied(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A server behind a trusted proxy on the loopback."""
    folder = tmp_path_factory.mktemp("proxied")
    with start_live(folder, fresh_database("sqlite", folder), {"trusted_proxies": "127.0.0.0/8,10.0.0.0/8"}) as live:
        yield live


def logged_address(live: Live, *headers: str) -> str:
    """The client address that a request with these headers is logged under."""
    marker = uuid4().hex
    with Wire(live) as wire:
        answer = wire.ask(get("/nowhere", f"X-Request-Id: {marker}", *headers))
        assert answer is not None
        assert answer.status == 404
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        for line in live.log.read_text().splitlines():
            if marker in line:
                return str(json.loads(line)["address"])
        time.sleep(0.05)
    raise AssertionError("not logged")


@pytest.mark.parametrize(
    ("hops", "address"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("1.1.1.1, 203.0.113.9", "203.0.113.9"),
        ("1.1.1.1, 203.0.113.9, 10.0.0.7", "203.0.113.9"),
        ("203.0.113.9, x", "127.0.0.1"),
        ("x, 203.0.113.9", "203.0.113.9"),
        ("2001:db8::1", "2001:db8::1"),
        ("", "127.0.0.1"),
        ("a" * 10_000, "127.0.0.1"),
    ],
)
def test_behind_a_trusted_proxy_the_rightmost_untrusted_hop_is_the_client(
    proxied: Live, hops: str, address: str
) -> None:
    assert logged_address(proxied, f"X-Forwarded-For: {hops}") == address


@pytest.mark.parametrize(
    ("peer", "address"),
    [("10.0.0.7", "203.0.113.9"), ("::ffff:10.0.0.7", "203.0.113.9"), ("::ffff:11.0.0.7", "11.0.0.7"), ("", "")],
)
def test_a_proxy_is_known_in_either_spelling_of_its_address(peer: str, address: str) -> None:
    request = Request("GET", "/", "/", "", {"x-forwarded-for": "203.0.113.9"}, b"", peer)
    assert client_address(request, networks_of(["10.0.0.0/8"])) == address


@pytest.mark.parametrize(
    ("trusted", "hops", "address"),
    [
        (["unix"], "203.0.113.9", "203.0.113.9"),
        (["unix"], "1.1.1.1, 10.0.0.7", "10.0.0.7"),
        (["unix", "10.0.0.0/8"], "1.1.1.1, 203.0.113.9, 10.0.0.7", "203.0.113.9"),
        (["unix"], "", ""),
        (["unix"], "203.0.113.9, x", ""),
        (["10.0.0.0/8"], "203.0.113.9", ""),
        ([], "203.0.113.9", ""),
    ],
)
def test_the_unix_socket_is_trusted_by_its_word_for_one_hop(trusted: list[str], hops: str, address: str) -> None:
    request = Request("GET", "/", "/", "", {"x-forwarded-for": hops}, b"", "")
    assert client_address(request, networks_of(trusted)) == address


def test_the_word_for_the_unix_socket_trusts_no_peer_that_has_an_address() -> None:
    request = Request("GET", "/", "/", "", {"x-forwarded-for": "203.0.113.9"}, b"", "192.0.2.1")
    assert client_address(request, networks_of(["unix"])) == "192.0.2.1"


def test_two_forwarded_headers_are_one_list(proxied: Live) -> None:
    assert logged_address(proxied, "X-Forwarded-For: 1.1.1.1", "X-Forwarded-For: 203.0.113.9") == "203.0.113.9"


@pytest.mark.parametrize(
    "name", ["X-Real-IP", "Forwarded", "True-Client-IP", "X_Forwarded_For", "X-Client-IP", "CF-Connecting-IP"]
)
def test_no_other_header_names_the_client(proxied: Live, name: str) -> None:
    assert logged_address(proxied, f"{name}: 203.0.113.9") == "127.0.0.1"


def test_without_trusted_proxies_the_peer_is_the_client(live: Live) -> None:
    assert logged_address(live, "X-Forwarded-For: 203.0.113.9") == "127.0.0.1"


def test_underscore_headers_never_stand_for_the_hyphen_form(live: Live) -> None:
    ada = a_user(live.rt, tenants={"acme-bank": ("analyst",)})
    bearer = f"Authorization: Bearer {a_token(live.rt, ada)}"
    with Wire(live) as wire:
        answer = wire.ask(get("/verify", bearer, "X_Tenant_Id: acme-bank"))
        refusal(answer, 400, "MISSING_TENANT")
        answer = wire.ask(get("/verify?tenant=optional", "Api_Key: a", "Api_Secret: b"))
        refusal(answer, 401, "UNAUTHENTICATED")


def test_host_and_forwarded_headers_change_no_link(live: Live) -> None:
    evil = (
        "Forwarded: host=evil.example;proto=https",
        "X-Forwarded-Host: evil.example",
        "X-Forwarded-Proto: https",
        "X-Forwarded-Prefix: /evil",
    )
    feed = an_application(live.rt)
    with Wire(live) as wire:
        for path in ("/.well-known/oauth-authorization-server", "/.well-known/openid-configuration"):
            plain, poisoned = wire.ask(get(path)), wire.ask(get(path, *evil).replace(b"auth.example", b"evil.example"))
            assert plain is not None
            assert poisoned is not None
            assert plain.status == 200
            assert poisoned.body == plain.body
            assert b"evil" not in poisoned.body
        body = json.dumps({"clientId": feed.client_id, "secret": feed.secret}).encode()
        answer = wire.ask(post("/application/token", body, *evil).replace(b"auth.example", b"evil.example"))
        assert answer is not None
        claims = jwt.decode(answer.json["data"]["accessToken"], options={"verify_signature": False})
        assert claims["iss"] == live.rt.settings.issuer
        assert "evil" not in json.dumps(claims)
