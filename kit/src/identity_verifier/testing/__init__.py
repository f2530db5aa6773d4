"""An issuer in memory, for the tests of services: keys, status lists, introspection, and a token of every kind in one line.

    issuer = Issuer()
    verifier = issuer.verifier()
    token = issuer.user_token(roles=["analyst"], tenants={"acme-bank": ["owner"]})
    caller = verifier.verify(f"Bearer {token}")
    issuer.revoke(token)
    issuer.tick(60)            # the status list is read again
    issuer.down = True         # nothing answers any more

Time is the machine's, moved by `tick`. `serve()` puts the same issuer behind a socket, for services in other processes and languages.
With pytest: `pytest_plugins = ["identity_verifier.testing.plugin"]` gives the fixtures `issuer` and `verifier`.
"""

from __future__ import annotations

import functools
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from identity_verifier.forging import Sign, forgeries, spell
from identity_verifier.jose import ACCESS_TOKEN, b64
from identity_verifier.refusals import Unreachable
from identity_verifier.status import CHANGED, INVALID
from identity_verifier.testing.answers import ENTRIES, Answers
from identity_verifier.testing.serving import listening
from identity_verifier.transport import Request, Response
from identity_verifier.verifier import Verifier

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
_RIGHTS: Final = ("roles", "groups", "tenants", "scope")


class Token(str):
    """A token, and what it claims."""

    __slots__ = ("claims",)
    claims: dict[str, Any]

    @property
    def header(self) -> str:
        """The `Authorization` header that carries it."""
        return f"Bearer {self}"


@functools.cache
def a_private_key(_number: int, alg: str = "RS256") -> PrivateKey:
    """The key of that number: the same in the whole process, since making one takes longer than most tests."""
    if alg == "ES256":
        return ec.generate_private_key(ec.SECP256R1())
    return rsa.generate_private_key(65537, 2048)


class SigningKey:
    """A key of the issuer, private half included."""

    def __init__(self, number: int, alg: str) -> None:
        self.kid = f"key-{number}-{alg.lower()}"
        self.alg = alg
        self.private = a_private_key(number, alg)
        self._algorithm = jwt.get_algorithm_by_name(alg)

    @property
    def jwk(self) -> dict[str, Any]:
        """What the JWKS shows of it."""
        shown = type(self._algorithm).to_jwk(self.private.public_key(), as_dict=True)
        members = {name: shown[name] for name in ("kty", "n", "e", "crv", "x", "y") if name in shown}
        return members | {"kid": self.kid, "alg": self.alg, "use": "sig"}

    def sign(self, signed: bytes) -> bytes:
        """Its signature."""
        return bytes(self._algorithm.sign(signed, self.private))


class Issuer:
    """An issuer that answers from memory; it is a `Transport`, and what it was asked is counted in `asked` by path.

    `client` may introspect and get tokens by its secret; `client_keys` are public keys of clients that sign, by client id, and `workloads`
    the tokens of other platforms that it trusts. `down` makes every question fail, `delay_seconds` makes it slow. `ttl` is the life of a
    status list, `keys_seconds` that of the JWKS.
    """

    def __init__(
        self,
        url: str = "https://issuer.example",
        audience: str = "https://api.example",
        *,
        alg: str = "RS256",
        ttl: int = 30,
        keys_seconds: int = 300,
    ) -> None:
        self.url = url
        self.audience = audience
        self.client = ("verifier", "verifier-secret")
        self.client_keys: dict[str, Any] = {}
        self.workloads: set[str] = set()
        self.down = False
        self.delay_seconds = 0.0
        self.ttl = ttl
        self.keys_seconds = keys_seconds
        self.entries: dict[int, int] = {}
        self.revoked_tokens: list[str] = []
        self.rights: dict[int, dict[str, Any]] = {}
        self.keys = [SigningKey(0, alg)]
        self._alg = alg
        self._made_keys = 1
        self._next_index = 0
        self._ahead = 0.0
        self._answers = Answers(self)
        self.asked = self._answers.asked

    # Time and questions.

    def now(self) -> float:
        """Its time; give it to a verifier as both clocks."""
        return time.time() + self._ahead

    def tick(self, seconds: float) -> None:
        """Let time pass."""
        self._ahead += seconds

    def __call__(self, request: Request) -> Response:
        """Answer as the service does. Raises Unreachable while `down`."""
        if self.delay_seconds:
            time.sleep(self.delay_seconds)
        if self.down:
            raise Unreachable("the issuer is down")
        return self._answers.answer(request)

    def verifier(self, **options: Any) -> Verifier:
        """A verifier that asks this issuer and lives by its time; options are those of `Verifier`."""
        defaults: dict[str, Any] = {"transport": self, "wall": self.now, "elapsed": self.now, "audience": self.audience}
        return Verifier(self.url, **(defaults | options))

    @contextmanager
    def serve(self) -> Iterator[str]:
        """Answer on a loopback port; yields the address, which is the issuer of all tokens made from now on."""
        with listening(self) as address:
            self.url = address
            yield address

    # Good tokens.

    def user_token(
        self,
        subject: str | None = None,
        *,
        roles: Iterable[str] = (),
        groups: Iterable[str] = (),
        tenants: Mapping[str, Iterable[str]] | None = None,
        **changes: Any,
    ) -> Token:
        """A token of somebody who signed in. Each has a login, and so a status, of its own; `changes` are claims, None leaves one out."""
        now = int(self.now())
        claims = self._common(subject or str(uuid.uuid4()), "the-portal") | {
            "auth_time": now,
            "amr": ["pwd"],
            "sid": str(uuid.uuid4()),
            "roles": sorted(roles),
            "groups": sorted(groups),
            "tenants": {tenant: sorted(held) for tenant, held in (tenants or {}).items()},
        }
        return self.sign(_without_blanks(claims) | changes)

    def application_token(
        self,
        client: str = "a-machine",
        *,
        scope: str = "",
        roles: Iterable[str] = (),
        tenant: str | None = None,
        **changes: Any,
    ) -> Token:
        """A token of a machine."""
        claims = self._common(client, client) | {
            "roles": sorted(roles),
            "tenants": {tenant: sorted(roles)} if tenant else {},
            "scope": scope,
        }
        return self.sign(_without_blanks(claims) | changes)

    def sign(
        self, claims: Mapping[str, Any], *, header: Mapping[str, Any] | None = None, key: SigningKey | None = None
    ) -> Token:
        """Sign whatever it is, with what the header has beyond or instead of the usual. Claims that are None are left out."""
        key = key or self.keys[-1]
        said = {name: value for name, value in claims.items() if value is not None}
        made = Token(spell({"alg": key.alg, "typ": ACCESS_TOKEN, "kid": key.kid} | dict(header or {}), said, key.sign))
        made.claims = said
        return made

    # What happens to tokens afterwards.

    def revoke(self, token: Token) -> None:
        """End the login or the secret that earned it."""
        self.entries[_index(token)] = INVALID

    def revoke_token(self, token: Token) -> None:
        """End this one token (RFC 7009)."""
        self.revoked_tokens.append(token.claims["jti"])

    def change_rights(self, token: Token, **rights: Any) -> None:
        """Give its subject other rights (`roles`, `groups`, `tenants`, `scope`); what is not named is gone."""
        self.entries[_index(token)] = CHANGED
        self.rights[_index(token)] = rights

    def rotate(self) -> SigningKey:
        """Sign with a new key from now on; the old one stays published."""
        self.keys.append(SigningKey(self._made_keys, self._alg))
        self._made_keys += 1
        return self.keys[-1]

    def revoke_key(self) -> None:
        """Sign with a new key, and take the old ones out of the JWKS at once, as in an emergency."""
        self.keys = [self.rotate()]

    def is_active(self, claims: Mapping[str, Any]) -> bool:
        """Whether a token of those claims is good now; what introspection tells."""
        index = claims.get("status", {}).get("status_list", {}).get("idx", 0)
        return (
            claims["exp"] > self.now()
            and index < ENTRIES
            and self.entries.get(index, 0) != INVALID
            and claims["jti"] not in self.revoked_tokens
        )

    # Bad tokens.

    def expired_token(self, *, seconds: int = 60) -> Token:
        """One whose time was over so many seconds ago."""
        return self.user_token(exp=int(self.now()) - seconds)

    def bad_tokens(self) -> dict[str, str]:
        """Every token that must be refused, by what is wrong with it: forged ones, and ones that were really signed."""
        good = self.user_token(roles=["analyst"], tenants={"acme-bank": ["analyst"]})
        return forgeries(good, self.keys[-1].jwk) | self.signed_bad_tokens()

    def signed_bad_tokens(self) -> dict[str, str]:
        """Those of `bad_tokens` that only the issuer could have made."""
        now = int(self.now())
        types = ("JWT", "mfa-challenge+jwt", "id_token+jwt", "AT+JWT", "application/at+jwt")
        found: dict[str, str] = {f"type {typ}": self._retyped({"typ": typ}) for typ in types}
        required = ("iss", "sub", "aud", "exp", "iat", "nbf", "jti", "client_id")
        found |= {f"without {name}": self.sign(self.user_token().claims | {name: None}) for name in required}
        odd: dict[str, dict[str, Any]] = {
            "expired": {"exp": now - 60},
            "expired long ago": {"exp": now - 86_400 * 30},
            "not valid yet": {"nbf": now + 3600},
            "another audience": {"aud": "https://somebody.example"},
            "a list of other audiences": {"aud": ["https://somebody.example", self.url]},
            "our audience as part of another": {"aud": self.audience + ".evil.example"},
            "another issuer": {"iss": "https://evil.example"},
            "our issuer with a slash": {"iss": self.url + "/"},
            "exp that is text": {"exp": str(now + 3600)},
            "exp that is beyond all years": {"exp": 10**30},
            "aud that is a number": {"aud": 7},
            "a session without a name": {"sid": ""},
            "a session without a time": {"auth_time": None},
            "roles that are text": {"roles": "users_admin"},
            "scope that is a list": {"scope": ["admin"]},
            "tenants that are a list": {"tenants": ["acme-bank"]},
            "a status list elsewhere": {"status": {"status_list": {"idx": 0, "uri": "https://evil.example/list"}}},
            "a status index beyond the list": {"status": self._status(2**24)},
        }
        found |= {name: self.sign(self.user_token().claims | changes) for name, changes in odd.items()}
        found["signed, with a crit that nobody knows"] = self._retyped({"crit": ["bork"], "bork": True})
        found["signed, with one header more"] = self._retyped({"cty": "JWT"})
        return found | {"revoked": self._ended(self.revoke), "revoked alone": self._ended(self.revoke_token)}

    def _retyped(self, header: Mapping[str, Any]) -> Token:
        return self.sign(self.user_token().claims, header=header)

    def _ended(self, end: Any) -> Token:
        token = self.user_token()
        end(token)
        return token

    def _common(self, subject: str, client: str) -> dict[str, Any]:
        now = int(self.now())
        self._next_index += 1
        return {
            "iss": self.url,
            "sub": subject,
            "client_id": client,
            "aud": self.audience,
            "iat": now,
            "nbf": now - 60,
            "exp": now + 3600,
            "jti": b64(uuid.uuid4().bytes),
            "status": self._status(self._next_index),
        }

    def _status(self, index: int) -> dict[str, Any]:
        return {"status_list": {"idx": index, "uri": self.list_uri}}

    @property
    def list_uri(self) -> str:
        """The address of its one status list."""
        return f"{self.url}/.well-known/status-lists/1"


def _index(token: Token) -> int:
    return int(token.claims["status"]["status_list"]["idx"])


def _without_blanks(claims: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in claims.items() if name not in _RIGHTS or value}


__all__ = ["Issuer", "Sign", "SigningKey", "Token", "a_private_key"]
