"""Signing keys: their life, their public half, and the making and checking of signatures.

The state of a key is a function of the clock, not a column that somebody must flip: a key is *next* until `signs_from`,
*active* until its successor starts, then *retired* until the last token that it can have signed is dead. So any number of
processes agree without electing anybody, and a rotation is one insert. Keys are parsed once, when the ring is loaded.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from sqlalchemy import BigInteger, Index, LargeBinary, String, delete, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Mapped, mapped_column

from identity.core.vault import Unsealable, Vault
from identity.errors import CONFLICT, INVALID_TOKEN, NOT_FOUND, UNAVAILABLE, VALIDATION, Refused
from identity.runtime import Clock, Origin, later
from identity.settings import BadSettings, Settings
from identity.storage import Base, Database, Instant, Prepared, Unit

# Three megabytes and a thirtieth of a second, for machines that hold keys of their own; a process that meets none does not pay them.
if TYPE_CHECKING:
    from joserfc.jwk import ECKey, KeySet, RSAKey

SKEW_SECONDS: Final = 60
TOKEN_MAX_CHARACTERS: Final = 8192
_MIN_RSA_BITS: Final = 2048
_MAX_RSA_BITS: Final = 8192
_RELOAD_SECONDS: Final = 5
_encode: Final = json.JSONEncoder(separators=(",", ":")).encode
_PADDING: Final = PKCS1v15()
_SHA256: Final = SHA256()
# ROCA (CVE-2017-15361): the moduli of the broken generator are powers of 65537 modulo each of these primes.
_ROCA_PRIMES: Final = (11, 13, 17, 19, 37, 53, 61, 71, 73, 79, 97, 103, 107, 109, 127, 151, 157)
_ROCA_POWERS: Final = {p: frozenset(pow(65537, e, p) for e in range(p)) for p in _ROCA_PRIMES}


class SigningKey(Base):
    """A signing key; its private half is sealed for this row."""

    __tablename__ = "signing_key"
    __table_args__ = (
        # At most one key waits without a date: two rotations at once cannot both take the standby.
        Index(
            "uq_signing_key_standby",
            "is_standby",
            unique=True,
            sqlite_where=text("is_standby = 1"),
            postgresql_where=text("is_standby = 1"),
        ),
        Index(
            "uq_signing_key_first",
            "is_first",
            unique=True,
            sqlite_where=text("is_first = 1"),
            postgresql_where=text("is_first = 1"),
        ),
    )

    kid: Mapped[str] = mapped_column(String(64), primary_key=True)
    sealed: Mapped[bytes] = mapped_column(LargeBinary)
    published_at: Mapped[datetime] = mapped_column(Instant)
    signs_from: Mapped[datetime | None] = mapped_column(Instant)
    is_standby: Mapped[int] = mapped_column(BigInteger, default=0)
    is_first: Mapped[int] = mapped_column(BigInteger, default=0)


class RingVersion(Base):
    """One row, counted up by every change of the ring, so that a cache of it can be checked for the price of a read."""

    __tablename__ = "ring_version"

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    version: Mapped[int] = mapped_column(BigInteger)


CURRENT_VERSION = select(RingVersion.version).where(RingVersion.id == 1).scalar_subquery()
_VERSION = Prepared(select(RingVersion.version).where(RingVersion.id == 1))


@dataclass(frozen=True, slots=True)
class LoadedKey:
    """A parsed key, with what is needed to use it at no further cost."""

    kid: str
    private: RSAPrivateKey
    public: RSAPublicKey
    published_at: datetime
    signs_from: datetime | None
    header: str
    jwk: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """What administrators see of a key."""

    kid: str
    state: str
    bits: int
    published_at: datetime
    signs_from: datetime | None


class Keyring:
    """The loaded signing keys of this process."""

    def __init__(self, settings: Settings, clock: Clock, database: Database, vault: Vault) -> None:
        self.vault = vault
        self._settings = settings
        self._clock = clock
        self._database = database
        self._loading = threading.Lock()
        self._keys: tuple[LoadedKey, ...] = ()
        self._by_header: dict[str, LoadedKey] = {}
        self._version = -1
        self._loaded_at: datetime | None = None
        self._checked = lru_cache(maxsize=4096)(self._check_signature)
        self._jwks: tuple[tuple[str, ...], bytes, str] = ((), b"", "")

    # Signing and checking our own tokens.

    def sign(self, claims: Mapping[str, Any], *, now: datetime) -> str:
        """A compact JWS over `claims`, with header `{"alg":"RS256","typ":"at+jwt","kid":...}` (RFC 9068 section 2.1)."""
        key = self._active(now)
        signed = f"{key.header}.{_b64(_encode(claims).encode())}"
        return f"{signed}.{_b64(key.private.sign(signed.encode(), _PADDING, _SHA256))}"

    def verify(self, token: str) -> Mapping[str, Any]:
        """The claims of a token that this ring signed; times and meaning are still the caller's to check.

        We issue one header for each key, to the byte: a token with any other header was never ours, so no algorithm, `crit`, `jku` or
        `jwk` of a stranger decides anything. Raises Refused(INVALID_TOKEN).
        """
        if len(token) > TOKEN_MAX_CHARACTERS:
            raise Refused(INVALID_TOKEN, detail="token over 8 KiB")
        try:
            return self._checked(token)
        except Refused:
            if not self._reload_for(token):
                raise
            return self._checked(token)

    def can_verify(self, token: str) -> bool:
        """Whether the key of an already verified token is still in the ring; ask after `ensure_version`."""
        return token.partition(".")[0] in self._by_header

    def ensure_version(self, version: int | None) -> bool:
        """Load the ring again if the database has moved on to another `version`; tell whether it had."""
        if version is None or version == self._version:
            return False
        self._load_again()
        return True

    def _check_signature(self, token: str) -> dict[str, Any]:
        header, _, rest = token.partition(".")
        payload, _, signature = rest.partition(".")
        key = self._by_header.get(header)
        if key is None:
            evidence = {"expected": {"kid": [*(one.kid for one in self._keys)]}, "seen": _shown_header(header)}
            raise Refused(INVALID_TOKEN, detail="not a header of ours", evidence=evidence)
        raw = _unb64(signature)
        body = _unb64(payload)
        if raw is None or body is None:
            raise Refused(INVALID_TOKEN, detail="not canonical base64url")
        try:
            key.public.verify(raw, token[: -len(signature) - 1].encode(), _PADDING, _SHA256)
        except InvalidSignature as exc:
            raise Refused(INVALID_TOKEN, detail="signature mismatch", evidence={"kid": key.kid}) from exc
        claims: dict[str, Any] = json.loads(body)
        return claims

    def _reload_for(self, token: str) -> bool:
        """Load again for a header that is unknown: another process may have made its key a moment ago."""
        stale = self._loaded_at is None or (self._clock.now() - self._loaded_at).total_seconds() >= 1
        if token.partition(".")[0] in self._by_header or not stale:
            return False
        self._load_again()
        return token.partition(".")[0] in self._by_header

    # The public half.

    def jwks(self) -> tuple[bytes, str]:
        """The JWK set (RFC 7517 section 5) of every key that may have signed a living token or will sign soon, and its ETag."""
        now = self._clock.now()
        published = [key for key in self._keys if not self._is_spent(key, now)]
        kids = tuple(key.kid for key in published)
        if self._jwks[0] != kids:
            body = json.dumps({"keys": [dict(key.jwk) for key in published]}, separators=(",", ":")).encode()
            self._jwks = (kids, body, f'"{hashlib.sha256(body).hexdigest()[:32]}"')
        return self._jwks[1], self._jwks[2]

    # Life of the keys.

    def load(self) -> None:
        """Read and parse the ring. Keys that are parsed already are kept."""
        with self._loading, self._database.reading() as session:
            version = session.scalar(select(RingVersion.version).where(RingVersion.id == 1))
            rows = session.scalars(select(SigningKey).order_by(SigningKey.published_at, SigningKey.kid)).all()
            parsed = {key.kid: key for key in self._keys}
            keys = []
            for row in rows:
                private = parsed[row.kid].private if row.kid in parsed else self._open(row)
                keys.append(_loaded(row, private))
            self._keys = tuple(keys)
            self._by_header = {key.header: key for key in keys}
            self._checked.cache_clear()
            self._version = -1 if version is None else version
            self._loaded_at = self._clock.now()

    def _load_again(self) -> None:
        """`load` while serving: keys that do not open are then a part that is down, and no start to be refused."""
        try:
            self.load()
        except BadSettings as exc:
            raise Refused(UNAVAILABLE, detail="the signing keys do not open", retry_after_seconds=1, cause=exc) from exc

    def reload_if_changed(self) -> None:
        """Load again when another process changed the ring; called every few seconds by the background loop."""
        found = self._database.row(_VERSION)
        self.ensure_version(found[0] if found else None)

    def ensure_first(self) -> None:
        """Make the first signing key of an empty database; of any number of processes that try at once, one succeeds."""
        self.load()
        if self._keys:
            return
        private = generate_private_key(65537, self._settings.rsa_bits)
        now = self._clock.now()
        try:
            with self._database.unit(now, Origin.background()) as unit:
                # Nobody can have cached a key set without it, so it may sign at once.
                unit.add(self._row(private, now, signs_from=now, is_first=1))
                unit.add(RingVersion(id=1, version=1))
        except IntegrityError:
            pass  # Another process was first; its key is the key.
        self.load()

    def ensure_standby(self) -> bool:
        """Publish the key that will sign next, if none waits; tell whether this call made it."""
        self.reload_if_changed()
        if any(key.signs_from is None for key in self._keys):
            return False
        private = generate_private_key(65537, self._settings.rsa_bits)
        now = self._clock.now()
        try:
            with self._database.unit(now, Origin.background()) as unit:
                unit.add(self._row(private, now, is_standby=1))
                _count_up(unit)
        except IntegrityError:
            return False
        self.load()
        return True

    def is_due(self) -> bool:
        """Whether the active key has signed for as long as it should."""
        days = self._settings.key_rotation_days
        now = self._clock.now()
        scheduled = [key.signs_from for key in self._keys if key.signs_from is not None]
        return bool(days and scheduled) and later(max(scheduled), days * 86_400) <= now

    def rotate(self, unit: Unit) -> KeyInfo:
        """Set the date from which the standby key signs: now, if verifiers have had time to see it, else as soon as they have.

        Raises Refused(CONFLICT) when no standby is published (the background loop makes one within seconds).
        """
        row = unit.execute(select(SigningKey).where(SigningKey.is_standby == 1)).scalar_one_or_none()
        if row is None:
            raise Refused(CONFLICT.saying("No standby key is published yet, try again in a minute"))
        start = max(unit.now, later(row.published_at, self._settings.jwks_max_age_seconds + SKEW_SECONDS))
        taken = unit.changed(
            update(SigningKey)
            .where(SigningKey.kid == row.kid, SigningKey.is_standby == 1)
            .values(is_standby=0, signs_from=start)
        )
        if not taken:
            raise Refused(CONFLICT.saying("Another rotation took the standby key at the same moment"))
        _count_up(unit)
        unit.after_commit(self.load)
        return KeyInfo(row.kid, "active" if start <= unit.now else "next", 0, row.published_at, start)

    def revoke(self, unit: Unit, kid: str) -> None:
        """Withdraw a key at once: everything that it signed is refused from the next request on.

        An active key needs a successor that may sign: its standby signs at once, whatever verifiers have cached.
        """
        if not unit.changed(delete(SigningKey).where(SigningKey.kid == kid)):
            raise Refused(NOT_FOUND, detail="no such signing key")
        signing = unit.execute(select(SigningKey.kid).where(SigningKey.signs_from <= unit.now)).first()
        if signing is None:
            heir = (
                unit.execute(select(SigningKey).order_by(SigningKey.is_standby, SigningKey.published_at))
                .scalars()
                .first()
            )
            if heir is None:
                private = generate_private_key(65537, self._settings.rsa_bits)
                unit.add(self._row(private, unit.now, signs_from=unit.now))
            else:
                heir.signs_from, heir.is_standby = unit.now, 0
                unit.session.flush()
        _count_up(unit)
        unit.after_commit(self.load)

    def import_pem(self, unit: Unit, pem: bytes) -> KeyInfo:
        """Take a private RSA key in PEM as the standby. Raises Refused(VALIDATION) for a key that is weak or none."""
        try:
            private = serialization.load_pem_private_key(pem, password=None)
        except (ValueError, TypeError) as exc:
            raise Refused(VALIDATION.saying("That is not an unencrypted PEM private key"), cause=exc) from exc
        if not isinstance(private, RSAPrivateKey):
            raise Refused(VALIDATION.saying("That is not an RSA key"))
        check_rsa(private.public_key())
        row = self._row(private, unit.now, is_standby=1)
        if unit.session.get(SigningKey, row.kid) is not None:
            raise Refused(CONFLICT.saying("That key is in the ring already"))
        unit.execute(delete(SigningKey).where(SigningKey.is_standby == 1))
        unit.add(row)
        _count_up(unit)
        unit.after_commit(self.load)
        return KeyInfo(row.kid, "next", private.key_size, unit.now, None)

    def drop_spent(self, unit: Unit) -> int:
        """Forget retired keys whose last token is dead; for the janitor."""
        spent = [key.kid for key in self._keys if self._is_spent(key, unit.now)]
        if not spent:
            return 0
        _count_up(unit)
        return unit.changed(delete(SigningKey).where(SigningKey.kid.in_(spent)))

    def list(self) -> list[KeyInfo]:
        """Every key and its state now, oldest first."""
        now = self._clock.now()
        return [
            KeyInfo(k.kid, self._state(k, now), k.public.key_size, k.published_at, k.signs_from) for k in self._keys
        ]

    def is_ready(self) -> bool:
        """Whether some key may sign now."""
        now = self._clock.now()
        return any(key.signs_from is not None and key.signs_from <= now for key in self._keys)

    def reseal(self, unit: Unit) -> int:
        """Seal everything of the ring under the newest master key; tell how many rows changed."""
        changed = int(self.vault.reseal_root(unit.session))
        for row in unit.execute(select(SigningKey)).scalars():
            if not self.vault.is_current(row.sealed):
                context = f"signing_key:{row.kid}"
                row.sealed = self.vault.seal(self.vault.open(row.sealed, context=context), context=context)
                changed += 1
        return changed

    def _active(self, now: datetime) -> LoadedKey:
        signing = [key for key in self._keys if key.signs_from is not None and key.signs_from <= now]
        if not signing:
            raise Refused(UNAVAILABLE, detail="the ring has no key that may sign", retry_after_seconds=1)
        return max(signing, key=lambda key: (key.signs_from or now, key.kid))

    def _state(self, key: LoadedKey, now: datetime) -> str:
        if key.signs_from is None or key.signs_from > now:
            return "next"
        return "active" if key.kid == self._active(now).kid else "retired"

    def _is_spent(self, key: LoadedKey, now: datetime) -> bool:
        """Whether every token that this key can have signed is dead, for verifiers with a slow clock too."""
        if key.signs_from is None or key.signs_from > now or self._state(key, now) == "active":
            return False
        successors = [
            k.signs_from for k in self._keys if k.signs_from is not None and key.signs_from < k.signs_from <= now
        ]
        longest = max(
            self._settings.user_token_seconds,
            self._settings.application_token_seconds,
            self._settings.access_token_seconds,
            86_400,
        )
        # Another process may sign with this key until it has seen the rotation.
        return bool(successors) and later(min(successors), longest + SKEW_SECONDS + _RELOAD_SECONDS) <= now

    def _row(self, private: RSAPrivateKey, now: datetime, **state: Any) -> SigningKey:
        kid = _thumbprint(private.public_key())
        plain = private.private_bytes(
            serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return SigningKey(
            kid=kid, sealed=self.vault.seal(plain, context=f"signing_key:{kid}"), published_at=now, **state
        )

    def _open(self, row: SigningKey) -> RSAPrivateKey:
        try:
            plain = self.vault.open(row.sealed, context=f"signing_key:{row.kid}")
        except Unsealable as exc:
            raise BadSettings("the master key does not open the signing keys: restore the right one") from exc
        # The bytes were authenticated by the seal, so the slow consistency check of the key would tell nothing new.
        private = serialization.load_der_private_key(plain, password=None, unsafe_skip_rsa_key_validation=True)
        assert isinstance(private, RSAPrivateKey)
        return private


def unverified_claims(token: str) -> dict[str, Any]:
    """What a compact JWS claims, whoever made it: for nothing but finding the keys to verify it with. Empty when it is none."""
    body = _unb64(token.split(".")[1]) if token.count(".") == 2 and len(token) <= TOKEN_MAX_CHARACTERS else None
    try:
        claims = json.loads(body or b"{}")
    except (ValueError, RecursionError):
        return {}
    return claims if isinstance(claims, dict) else {}


def verify_assertion(
    token: str, jwks: Mapping[str, Any], *, algorithms: tuple[str, ...] = ("RS256", "ES256")
) -> dict[str, Any]:
    """The claims of a compact JWS that one of a client's registered public keys made (RFC 7523 section 3).

    Raises Refused(INVALID_TOKEN) for anything else.
    """
    try:
        claims = json.loads(verify_jws(token, jwks, algorithms=algorithms))
    except (ValueError, RecursionError) as exc:
        raise Refused(INVALID_TOKEN, detail="assertion: the payload is no JSON", cause=exc) from exc
    if not isinstance(claims, dict):
        raise Refused(INVALID_TOKEN, detail="assertion: the payload is no object")
    return claims


def verify_jws(token: str, jwks: Mapping[str, Any], *, algorithms: tuple[str, ...]) -> bytes:
    """The payload of a compact JWS (RFC 7515 section 7.1) that a key of `jwks` made.

    Raises Refused(INVALID_TOKEN) for other algorithms, other serialisations, and keys that `load_jwks` refuses.
    """
    from joserfc import jws  # noqa: PLC0415 -- see above
    from joserfc.errors import JoseError  # noqa: PLC0415 -- see above

    parts = token.split(".")
    if len(token) > TOKEN_MAX_CHARACTERS or len(parts) != 3 or any(part and _unb64(part) is None for part in parts):
        raise Refused(INVALID_TOKEN, detail="not a compact JWS")
    try:
        signed = jws.deserialize_compact(token, load_jwks(jwks), algorithms=list(algorithms))
    except (JoseError, Refused, ValueError, TypeError, KeyError, RecursionError) as exc:
        raise Refused(INVALID_TOKEN, detail=f"assertion: {type(exc).__name__}", cause=exc) from exc
    if "crit" in signed.protected:
        # joserfc lets an empty list pass, which RFC 7515 section 4.1.11 forbids; we understand no extension at all.
        raise Refused(INVALID_TOKEN, detail="assertion: crit")
    return signed.payload


def load_jwks(jwks: Mapping[str, Any]) -> KeySet:
    """A client's public keys, if all of them are fit for signatures: RSA of 2048 bits or more (not ROCA, odd exponent over 1), or P-256.

    Raises Refused(VALIDATION) for symmetric, private or weak keys, a wrong `use` or `key_ops`, and repeated `kid`s.
    """
    from joserfc.jwk import KeySet  # noqa: PLC0415 -- see above

    entries = jwks.get("keys")
    if not isinstance(entries, list) or not 1 <= len(entries) <= 10:
        raise Refused(VALIDATION.saying("A key set holds from 1 to 10 keys"), field="jwks")
    kids = [entry.get("kid") for entry in entries if isinstance(entry, dict) and "kid" in entry]
    if len(set(map(str, kids))) != len(kids):
        raise Refused(VALIDATION.saying("A key set must not repeat a kid"), field="jwks")
    return KeySet([_load_public(entry) for entry in entries])


def check_rsa(public: RSAPublicKey) -> None:
    """Raise Refused(VALIDATION) for an RSA key that must not be trusted."""
    numbers = public.public_numbers()
    if not _MIN_RSA_BITS <= public.key_size <= _MAX_RSA_BITS:
        raise Refused(VALIDATION.saying("RSA keys need from 2048 to 8192 bits"), field="jwks")
    if numbers.e < 3 or numbers.e % 2 == 0 or numbers.n % 2 == 0:
        raise Refused(VALIDATION.saying("That RSA key has an unsafe exponent or modulus"), field="jwks")
    if all(numbers.n % prime in powers for prime, powers in _ROCA_POWERS.items()):
        raise Refused(VALIDATION.saying("That RSA key comes from a broken generator (CVE-2017-15361)"), field="jwks")


def _load_public(entry: Any) -> RSAKey | ECKey:
    from joserfc.errors import JoseError  # noqa: PLC0415 -- see above
    from joserfc.jwk import ECKey, RSAKey  # noqa: PLC0415 -- see above

    unfit = Refused(VALIDATION.saying("A key of the set is not a public RSA or P-256 signature key"), field="jwks")
    if not isinstance(entry, dict) or {"d", "k", "p", "q"} & entry.keys() or entry.get("use", "sig") != "sig":
        raise unfit
    operations = entry.get("key_ops", ["verify"])
    if not isinstance(operations, list) or "verify" not in operations or not isinstance(entry.get("kid", ""), str):
        raise unfit
    # joserfc only warns of short moduli, on standard error; those never reach it.
    if entry.get("kty") == "RSA" and len(str(entry.get("n", ""))) * 6 < _MIN_RSA_BITS:
        raise unfit
    try:
        if entry.get("kty") == "RSA" and entry.get("alg", "RS256") == "RS256":
            rsa = RSAKey.import_key(entry)
            check_rsa(rsa.public_key)
            return rsa
        if entry.get("kty") == "EC" and entry.get("crv") == "P-256" and entry.get("alg", "ES256") == "ES256":
            return ECKey.import_key(entry)
    except (JoseError, ValueError, TypeError, KeyError, OverflowError, UnicodeError) as exc:
        raise unfit from exc
    raise unfit


def _shown_header(header: str) -> dict[str, str]:
    """What a stranger's token says of itself, for the explanation of its refusal: short, and believed by nobody."""
    try:
        said = json.loads(_unb64(header[:1024]) or b"")
    except (ValueError, RecursionError):
        return {}
    shown = {name: said[name] for name in ("alg", "typ", "kid") if name in said} if isinstance(said, dict) else {}
    return {name: value[:64] for name, value in shown.items() if isinstance(value, str) and value.isprintable()}


def _count_up(unit: Unit) -> None:
    unit.execute(update(RingVersion).where(RingVersion.id == 1).values(version=RingVersion.version + 1))


def _loaded(row: SigningKey, private: RSAPrivateKey) -> LoadedKey:
    public = private.public_key()
    header = _b64(json.dumps({"alg": "RS256", "typ": "at+jwt", "kid": row.kid}, separators=(",", ":")).encode())
    jwk = {"kty": "RSA", "use": "sig", "alg": "RS256", "kid": row.kid, **_rsa_members(public)}
    return LoadedKey(row.kid, private, public, row.published_at, row.signs_from, header, jwk)


def _rsa_members(public: RSAPublicKey) -> dict[str, str]:
    numbers = public.public_numbers()
    return {
        "n": _b64(numbers.n.to_bytes((numbers.n.bit_length() + 7) // 8)),
        "e": _b64(numbers.e.to_bytes((numbers.e.bit_length() + 7) // 8)),
    }


def _thumbprint(public: RSAPublicKey) -> str:
    """The JWK thumbprint of a public key (RFC 7638)."""
    members = _rsa_members(public)
    canonical = json.dumps({"e": members["e"], "kty": "RSA", "n": members["n"]}, separators=(",", ":"))
    return _b64(hashlib.sha256(canonical.encode()).digest())


def _b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _unb64(text: str) -> bytes | None:
    """Decode base64url if `text` is its one canonical spelling, without padding or stray bits; else None."""
    try:
        raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except ValueError:
        return None
    return raw if text and _b64(raw) == text else None
