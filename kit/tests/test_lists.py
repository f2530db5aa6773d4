"""Status lists: the draft's own examples, and every list that must not be believed."""

from __future__ import annotations

import json
import zlib
from typing import Any

import pytest

from identity_verifier import Refused, status
from identity_verifier.jose import Unfit, b64
from identity_verifier.testing import Issuer, Token
from identity_verifier.testing.answers import Answers
from identity_verifier.transport import Request, Response
from waiting import settled

URI = "https://i.example/.well-known/status-lists/1"


def a_list(bits: int, lst: str, **changes: Any) -> status.StatusList:
    claims = {"sub": URI, "iat": 1000, "exp": 4600, "ttl": 30, "status_list": {"bits": bits, "lst": lst}} | changes
    return status.read(claims, uri=URI, now=1000)


def test_the_draft_example_of_one_bit() -> None:
    listed = a_list(1, "eNrbuRgAAhcBXQ")
    assert [listed.status(n) for n in range(16)] == [1, 0, 0, 1, 1, 1, 0, 1, 1, 1, 0, 0, 0, 1, 0, 1]


def test_the_draft_example_of_two_bits() -> None:
    listed = a_list(2, "eNo76fITAAPfAgc")
    assert [listed.status(n) for n in range(12)] == [1, 2, 0, 3, 0, 1, 0, 1, 1, 2, 3, 3]


def test_an_index_beyond_the_list_is_invalid() -> None:
    assert a_list(1, "eNrbuRgAAhcBXQ").status(16) == status.INVALID


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"sub": URI + "2"}, "another one"),
        ({"sub": None}, "another one"),
        ({"iat": 1031}, "future"),
        ({"iat": None}, "future"),
        ({"iat": "1000"}, "no number"),
        ({"exp": 970}, "expired"),
        ({"ttl": -1}, "no number"),
        ({"ttl": 1.5}, "no number"),
        ({"status_list": None}, "no entries"),
        ({"status_list": {"bits": 3, "lst": "eNrbuRgAAhcBXQ"}}, "no entries"),
        ({"status_list": {"bits": True, "lst": "eNrbuRgAAhcBXQ"}}, "no entries"),
        ({"status_list": {"bits": 2, "lst": "====", "x": 1}}, "base64url"),
        ({"status_list": {"bits": 2, "lst": b64(b"not zlib")}}, "zlib"),
        ({"status_list": {"bits": 2, "lst": b64(zlib.compress(bytes(5000))[:-6])}}, "cut off"),
        ({"status_list": {"bits": 2, "lst": b64(zlib.compress(bytes(2**23)))}}, "larger"),
        ({"revoked_tokens": "abc"}, "revoked_tokens"),
        ({"revoked_tokens": [1]}, "revoked_tokens"),
    ],
)
def test_a_list_that_is_not_whole_is_not_believed(change: dict[str, Any], why: str) -> None:
    with pytest.raises(Unfit, match=why):
        a_list(2, "eNo76fITAAPfAgc", **change)


@pytest.mark.parametrize(
    "uri",
    [
        "https://evil.example/.well-known/status-lists/1",
        "https://i.example.evil.example/.well-known/status-lists/1",
        "https://i.example@evil.example/.well-known/status-lists/1",
        "https://i.example/.well-known/status-lists/",
        "https://i.example/.well-known/status-lists/../jwks.json",
        "https://i.example/.well-known/status-lists/1?x=y",
        "https://i.example/.well-known/status-lists/1#x",
        "https://i.example/.well-known/status-lists/a/b",
        "https://i.example/.well-known/status-lists/%2e",
        "https://i.example/.well-known/status-lists/" + "a" * 129,
        "http://i.example/.well-known/status-lists/1",
        "https://i.example/.well-known/status-lists/１",
        "file:///etc/passwd",
    ],
)
def test_a_list_lies_under_the_issuer(uri: str) -> None:
    assert not status.is_under("https://i.example", uri)


@pytest.mark.parametrize("issuer", ["https://i.example", "https://i.example/", "https://i.example/tenant"])
def test_where_it_does(issuer: str) -> None:
    assert status.is_under(issuer, issuer.rstrip("/") + "/.well-known/status-lists/a-1_B")


@pytest.mark.parametrize(
    "claim",
    [
        7,
        {},
        {"status_list": 1},
        {"status_list": {"idx": "1", "uri": URI}},
        {"status_list": {"idx": -1, "uri": URI}},
        {"status_list": {"idx": True, "uri": URI}},
        {"status_list": {"idx": 1}},
    ],
)
def test_a_status_that_is_no_reference_is_no_good_token(claim: Any) -> None:
    with pytest.raises(Unfit):
        status.reference_of({"status": claim}, issuer="https://i.example")


class Forging:
    """A transport that gives out other lists than the issuer's."""

    def __init__(self, issuer: Issuer) -> None:
        self.issuer = issuer
        self.spoil: Any = None

    def __call__(self, request: Request) -> Response:
        answer = self.issuer(request)
        return self.spoil(answer) if self.spoil and "status-lists" in request.url else answer


def _other_type(issuer: Issuer, answer: Response) -> Response:
    claims = Answers(issuer).status_list().claims  # type: ignore[attr-defined]
    return Response(200, answer.headers, issuer.sign(claims, header={"typ": "at+jwt"}).encode())


def _stranger(issuer: Issuer, answer: Response) -> Response:
    other = Issuer(issuer.url)
    other.keys = [other.rotate()]
    return Response(200, answer.headers, Answers(other).status_list().encode())


SPOILS: dict[str, Any] = {
    "signed as another type": _other_type,
    "signed by a stranger": _stranger,
    "unsigned": lambda _i, a: Response(200, a.headers, a.body.rpartition(b".")[0] + b"."),
    "of another address": lambda i, a: Response(200, a.headers, Answers(i).status_list(sub=i.url).encode()),
    "of another issuer": lambda i, a: Response(200, a.headers, Answers(i).status_list(iss="https://x").encode()),
    "long expired": lambda i, a: Response(200, a.headers, Answers(i).status_list(exp=int(i.now()) - 99).encode()),
    "an access token": lambda i, a: Response(200, a.headers, i.user_token().encode()),
    "no text": lambda _i, a: Response(200, a.headers, b"\xff\xfe"),
    "JSON": lambda _i, a: Response(200, a.headers, json.dumps({"status_list": {}}).encode()),
    "missing": lambda _i, a: Response(404, {}, b""),
    "moved": lambda _i, a: Response(302, {"location": "https://evil.example"}, b""),
    "not changed, of which nothing is held": lambda _i, a: Response(304, a.headers, b""),
}


@pytest.mark.parametrize("spoil", SPOILS)
def test_no_other_list_is_believed(issuer: Issuer, spoil: str) -> None:
    forging = Forging(issuer)
    forging.spoil = lambda answer: SPOILS[spoil](issuer, answer)
    verifier = issuer.verifier(transport=forging)
    token = issuer.user_token()
    with pytest.raises(Refused) as caught:
        verifier.verify(token.header)
    assert caught.value.status == 503
    forging.spoil = None
    issuer.tick(6)
    assert verifier.verify(token.header)


def test_an_older_list_does_not_bring_back_what_was_ended(issuer: Issuer) -> None:
    forging = Forging(issuer)
    verifier = issuer.verifier(transport=forging)
    token = issuer.user_token(exp=int(issuer.now()) + 9999)
    verifier.verify(token.header)
    old = Answers(issuer).status_list()
    issuer.tick(31)
    issuer.revoke(token)
    with pytest.raises(Refused):
        verifier.verify(token.header)
    forging.spoil = lambda answer: Response(200, answer.headers, old.encode())
    issuer.tick(31)
    with pytest.raises(Refused) as caught:
        verifier.verify(token.header)
    assert caught.value.status == 401


def test_the_reserved_value_is_no_good_status(issuer: Issuer, verifier: Any) -> None:
    token = issuer.user_token()
    issuer.entries[token.claims["status"]["status_list"]["idx"]] = 2
    with pytest.raises(Refused, match="revoked"):
        verifier.verify(token.header)


def test_many_lists_stay_within_bounds(issuer: Issuer, verifier: Any) -> None:
    verifier.warm()
    for n in range(100):
        verifier._sources.list_at(f"{issuer.url}/.well-known/status-lists/{n}")
    assert len(verifier._sources.lists) == 64


def test_the_shorter_of_ttl_and_max_age_is_its_life(issuer: Issuer) -> None:
    forging = Forging(issuer)
    forging.spoil = lambda answer: Response(200, dict(answer.headers) | {"cache-control": "max-age=10"}, answer.body)
    verifier = issuer.verifier(transport=forging)
    token: Token = issuer.user_token()
    verifier.verify(token.header)
    issuer.revoke(token)
    issuer.tick(11)
    with pytest.raises(Refused):
        verifier.verify(token.header)
    settled(verifier)
