"""Is a service strict enough? `python -m identity_verifier.conformance URL --token T` asks it, whatever it is written in.

A good token must pass, and some seventy bad ones must be refused. What can be forged without the issuer's key is made here from the good
token; what only the issuer can sign (expired, for another audience, revoked ...) comes from `identity testkit > FILE`, by `--testkit FILE`.

Exit code 0: nothing to complain of. 1: it let something in, or broke. 2: it could not be judged.
"""

from __future__ import annotations

import argparse
import http.client
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

from identity_verifier.forging import forgeries
from identity_verifier.jose import Unfit, un64
from identity_verifier.refusals import Unreachable
from identity_verifier.transport import HttpTransport, Request

Headers = list[tuple[str, str]]
_REFUSED: Final = (400, 401, 403, 414, 431)
_MAX_PAUSE_SECONDS: Final = 70
_FOREIGN_TENANT: Final = "no-such-tenant-of-anybody"


class CannotJudge(Exception):
    """What is missing for a verdict."""


class Verdict(StrEnum):
    """What became of one request."""

    RIGHT = "right"
    LET_IN = "LET IN"
    BROKE = "BROKE"
    REFUSED_GOOD = "REFUSED A GOOD TOKEN"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One request: what is wrong with it, or that it is good; its credential never shows."""

    name: str
    headers: Headers = field(repr=False)
    good: bool = False
    query: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Outcome:
    """An attempt and what the service made of it; status 0 is a connection closed without an answer."""

    attempt: Attempt
    status: int
    verdict: Verdict


Sender = Callable[[Attempt], tuple[int, Mapping[str, str]]]


def attempts(token: str, jwk: Mapping[str, Any], *, tenant: str | None = None) -> Iterator[Attempt]:
    """What anybody can try who has one good token. With `tenant`, it is named in each request, and a foreign one in one of them."""
    named: Headers = [("X-Tenant-Id", tenant)] if tenant else []
    good = ("Authorization", f"Bearer {token}")
    yield Attempt("a good token", [good, *named], good=True)
    yield Attempt("no credential", [*named])
    yield Attempt("an empty Authorization", [("Authorization", ""), *named])
    yield Attempt("Bearer without a token", [("Authorization", "Bearer "), *named])
    yield Attempt("the token without its scheme", [("Authorization", token), *named])
    yield Attempt("the token as Basic", [("Authorization", f"Basic {token}"), *named])
    yield Attempt("two Authorization headers", [good, ("Authorization", "Bearer x"), *named])
    yield Attempt("the token in the query only", [*named], query=urlencode({"access_token": token}))
    for name, forged in forgeries(token, jwk).items():
        yield Attempt(name, [("Authorization", f"Bearer {forged}"), *named])
    if tenant:
        yield Attempt("a tenant of others", [good, ("X-Tenant-Id", _FOREIGN_TENANT)])


def attempts_of_testkit(testkit: Mapping[str, Any], *, tenant: str | None = None) -> Iterator[Attempt]:
    """What `identity testkit` signed. Raises CannotJudge for a file of another form."""
    try:
        for good, group in ((True, testkit["good"]), (False, testkit["bad"])):
            for each in group:
                meant = each.get("tenant", tenant)
                headers = [("Authorization", f"Bearer {each['token']}")]
                yield Attempt(each["name"], headers + ([("X-Tenant-Id", meant)] if meant else []), good=good)
    except (KeyError, TypeError, AttributeError) as exc:
        raise CannotJudge(f"this is no testkit: {exc!r}") from exc


def judge(send: Sender, tried: Iterable[Attempt]) -> list[Outcome]:
    """Every attempt with its verdict, in order."""
    return [_judged(attempt, send(attempt)[0]) for attempt in tried]


def _judged(attempt: Attempt, status: int) -> Outcome:
    if attempt.good:
        verdict = Verdict.RIGHT if 200 <= status < 400 else Verdict.REFUSED_GOOD
    elif status in _REFUSED or (status == 0 and _is_oversized(attempt)):
        verdict = Verdict.RIGHT
    elif status == 0 or status >= 500:
        verdict = Verdict.BROKE
    else:
        verdict = Verdict.LET_IN
    return Outcome(attempt, status, verdict)


def _is_oversized(attempt: Attempt) -> bool:
    # A server may hang up on a header that no server need read.
    return any(len(value) > 8000 for _, value in attempt.headers)


def http_sender(url: str, *, method: str = "GET", headers: Headers | None = None) -> Sender:
    """Sends attempts to `url`, one connection each; waits where it is asked to (429)."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise CannotJudge(f"not an address: {url}")

    def once(attempt: Attempt) -> tuple[int, Mapping[str, str]]:
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.netloc, timeout=30)
        query = "&".join(filter(None, (parts.query, attempt.query)))
        try:
            connection.putrequest(method, (parts.path or "/") + (f"?{query}" if query else ""))
            for name, value in [*(headers or []), *attempt.headers]:
                connection.putheader(name, value)
            if method in ("POST", "PUT", "PATCH"):
                connection.putheader("Content-Length", "0")
            connection.endheaders()
            answer = connection.getresponse()
            answer.read()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}
        except (ConnectionError, http.client.BadStatusLine):
            return 0, {}
        except OSError as exc:
            raise CannotJudge(f"{parts.netloc} does not answer: {exc}") from exc
        finally:
            connection.close()

    def send(attempt: Attempt) -> tuple[int, Mapping[str, str]]:
        status, said = once(attempt)
        for _ in range(3):
            if status != 429:
                break
            asked = said.get("retry-after", "")
            time.sleep(min(_MAX_PAUSE_SECONDS, int(asked) if asked.isdigit() else 5))
            status, said = once(attempt)
        return status, said

    return send


def signing_key_of(token: str, jwks_uri: str | None = None) -> dict[str, Any]:
    """The published key that signed `token`. Raises CannotJudge."""
    try:
        header, claims = (json.loads(un64(part)) for part in token.split(".")[:2])
        uri = jwks_uri or claims["iss"].rstrip("/") + "/.well-known/jwks.json"
        kid = header["kid"]
    except (Unfit, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise CannotJudge("the token given with --token is no signed access token") from exc
    transport = HttpTransport()
    try:
        said = transport(Request("GET", uri, {"Accept": "application/json"}))
        keys = json.loads(said.body)["keys"]
        return next(dict(key) for key in keys if key["kid"] == kid)
    except (Unreachable, ValueError, KeyError, TypeError) as exc:
        raise CannotJudge(f"no keys from {uri}; --jwks names another address") from exc
    except StopIteration as exc:
        raise CannotJudge(f"{uri} does not hold the key of this token") from exc
    finally:
        transport.close()


def report(outcomes: Sequence[Outcome]) -> str:
    """What people read: each fault in a line, then the sum."""
    faults = [each for each in outcomes if each.verdict is not Verdict.RIGHT]
    lines = [f"{each.verdict} ({each.status or 'no answer'}): {each.attempt.name}" for each in faults]
    bad = [each for each in outcomes if not each.attempt.good]
    right = sum(each.verdict is Verdict.RIGHT for each in bad)
    lines.append(f"{right} of {len(bad)} bad requests were refused; {len(outcomes) - len(bad)} good ones were tried")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    given = _parser().parse_args(arguments)
    try:
        outcomes = judge(
            http_sender(given.url, method=given.method, headers=[_header(each) for each in given.header]),
            _all_attempts(given),
        )
    except CannotJudge as exc:
        print(f"cannot judge: {exc}", file=sys.stderr)  # noqa: T201 -- a command
        return 2
    if not any(each.attempt.good and each.verdict is Verdict.RIGHT for each in outcomes):
        print(f"cannot judge: a service that refuses every good token\n{report(outcomes)}", file=sys.stderr)  # noqa: T201
        return 2
    if given.json:
        shown = [
            {"name": o.attempt.name, "good": o.attempt.good, "status": o.status, "verdict": str(o.verdict)}
            for o in outcomes
        ]
        print(json.dumps(shown, indent=2))  # noqa: T201 -- a command
    else:
        print(report(outcomes))  # noqa: T201 -- a command
    return int(any(each.verdict is not Verdict.RIGHT for each in outcomes))


def _all_attempts(given: argparse.Namespace) -> list[Attempt]:
    first, *more = given.token
    found = list(attempts(first, signing_key_of(first, given.jwks), tenant=given.tenant))
    tenant: Headers = [("X-Tenant-Id", given.tenant)] if given.tenant else []
    found += [Attempt("a good token", [("Authorization", f"Bearer {token}"), *tenant], good=True) for token in more]
    if given.testkit:
        try:
            testkit = json.loads(given.testkit.read_text())
        except (OSError, ValueError) as exc:
            raise CannotJudge(f"{given.testkit} cannot be read: {exc}") from exc
        found += attempts_of_testkit(testkit, tenant=given.tenant)
    return found


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon:
        raise CannotJudge(f"--header wants 'Name: value', not {text!r}")
    return name.strip(), value.strip()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m identity_verifier.conformance",
        description="Send bad tokens to a service, and say which it let in.",
    )
    parser.add_argument("url", help="an address of the service that needs a token")
    parser.add_argument("--token", action="append", required=True, help="a token that it must accept; may be repeated")
    parser.add_argument("--testkit", type=Path, metavar="FILE", help="what `identity testkit` wrote")
    parser.add_argument("--tenant", help="the X-Tenant-Id to send")
    parser.add_argument("--method", default="GET")
    parser.add_argument("--header", action="append", default=[], metavar="'NAME: VALUE'", help="may be repeated")
    parser.add_argument("--jwks", metavar="URL", help="where the issuer's keys are, unless at its usual address")
    parser.add_argument("--json", action="store_true", help="every attempt, for programs")
    return parser


if __name__ == "__main__":
    sys.exit(main())
