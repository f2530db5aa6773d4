"""The key ring: the life of our signing keys, their public half, and the making and checking of our signatures.

The state of a key is a function of the clock, not a column that somebody must flip: a key is *next* until `signs_from`,
*active* until its successor starts, then *retired* until the last token that it can have signed is dead. So any number of
processes agree without electing anybody, and a rotation is one insert. Keys are parsed once, when the ring is loaded.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any, Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from sqlalchemy import BigInteger, Index, LargeBinary, String, delete, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Mapped, mapped_column

from identity import grounds
from identity.ambient import Clock, Origin, later
from identity.canonical import decode_base64url, decode_object, encode_base64url
from identity.columns import Instant
from identity.errors import CONFLICT, INVALID_TOKEN, NOT_FOUND, UNAVAILABLE, VALIDATION, Refused
from identity.instruments.algorithms import ALGORITHMS, Algorithm, PrivateKey, PublicKey, algorithm_of, thumbprint
from identity.instruments.jws import TOKEN_MAX_CHARACTERS, check_rsa
from identity.instruments.vault import Unsealable, Vault
from identity.settings import BadSettings, Settings
from identity.storage import Base, Database, Prepared, Unit

SKEW_SECONDS: Final = 60
ACCESS_TOKEN: Final = "at+jwt"
_RELOAD_SECONDS: Final = 5
_encode: Final = json.JSONEncoder(separators=(",", ":")).encode


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
    algorithm: Algorithm
    private: PrivateKey
    public: PublicKey
    published_at: datetime
    signs_from: datetime | None
    header: str
    jwk: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """What administrators see of a key."""

    kid: str
    state: str
    algorithm: str
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

    def sign(self, claims: Mapping[str, Any], *, now: datetime, typ: str = ACCESS_TOKEN) -> str:
        """A compact JWS over `claims`, with header `{"alg":...,"typ":"at+jwt","kid":...}` (RFC 9068 section 2.1), or another `typ`.

        `verify` takes access tokens only: nothing else that we sign passes for one.
        """
        key = self._active(now)
        header = key.header if typ is ACCESS_TOKEN else _header(key.algorithm, typ, key.kid)
        signed = f"{header}.{encode_base64url(_encode(claims).encode())}"
        return f"{signed}.{encode_base64url(key.algorithm.sign(key.private, signed.encode()))}"

    def active_kid(self, now: datetime) -> str:
        """The key that signs now. Raises Refused(UNAVAILABLE) where none does."""
        return self._active(now).kid

    def sign_unlike_us(
        self, claims: Mapping[str, Any], *, now: datetime, header: Mapping[str, Any] | None = None
    ) -> str:
        """Sign what we would never write, for services that test how strict they are: in development only, RuntimeError elsewhere.

        `header` changes ours; what is None, there and among the claims, is left out.
        """
        if not self._settings.development:
            raise RuntimeError("outside development nothing is signed but what we mean")
        key = self._active(now)
        said = {"alg": key.algorithm.name, "typ": "at+jwt", "kid": key.kid, **(header or {})}
        parts = ({name: value for name, value in part.items() if value is not None} for part in (said, claims))
        signed = ".".join(encode_base64url(_encode(part).encode()) for part in parts)
        return f"{signed}.{encode_base64url(key.algorithm.sign(key.private, signed.encode()))}"

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

    def kid_of(self, token: str) -> str:
        """Which key of the ring signed an already verified token; empty where it has left the ring, or what was presented is no token."""
        key = self._by_header.get(token.partition(".")[0])
        return key.kid if key is not None else ""

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
            evidence = {"expected": {"kid": [*(one.kid for one in self._keys)]}, "seen": _shown(header, payload)}
            raise Refused(INVALID_TOKEN, detail="not a header of ours", evidence=evidence)
        raw = decode_base64url(signature)
        body = decode_base64url(payload)
        if raw is None or body is None:
            raise Refused(INVALID_TOKEN, detail="not canonical base64url")
        try:
            key.algorithm.verify(key.public, raw, token[: -len(signature) - 1].encode())
        except InvalidSignature as exc:
            raise Refused(INVALID_TOKEN, detail="signature mismatch", evidence={"kid": key.kid}) from exc
        try:
            return decode_object(body)
        except ValueError as exc:
            # Only whoever has our key can come this far: an imported one may be another issuer's too.
            raise Refused(INVALID_TOKEN, detail=f"the payload is {exc}", evidence={"kid": key.kid}) from exc

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
        found = self._jwks[1], self._jwks[2]
        grounds.note_look(self.jwks, found)
        return found

    # Life of the keys.

    def load(self) -> None:
        """Read and parse the ring. Keys that are parsed already are kept."""
        self._database.refuse_writes_here()  # Whoever holds the lock waits for the database, and an event loop must not.
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
        private = self._generate()
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
        """Publish the key that will sign next, if none waits; tell whether this call made it.

        One that waits with another algorithm than `IDENTITY_SIGNING_ALG` never signed, and makes room.
        """
        self.reload_if_changed()
        waiting = [key for key in self._keys if key.signs_from is None]
        if any(key.algorithm.name == self._settings.signing_alg for key in waiting):
            return False
        private = self._generate()
        now = self._clock.now()
        try:
            with self._database.unit(now, Origin.background()) as unit:
                outdated = [key.kid for key in waiting]
                unit.execute(delete(SigningKey).where(SigningKey.kid.in_(outdated), SigningKey.is_standby == 1))
                unit.add(self._row(private, now, is_standby=1))
                _count_up(unit)
        except IntegrityError:
            return False
        self.load()
        return True

    def is_due(self) -> bool:
        """Whether the active key has signed for as long as it should, or another algorithm is wanted by now."""
        days = self._settings.key_rotation_days
        scheduled = [(key.signs_from, key.algorithm.name) for key in self._keys if key.signs_from is not None]
        if not days or not scheduled:
            return False
        signs_from, algorithm = max(scheduled)
        return algorithm != self._settings.signing_alg or later(signs_from, days * 86_400) <= self._clock.now()

    def rotate(self, unit: Unit) -> str:
        """Set the date from which the standby key signs: now, if verifiers have had time to see it, else as soon as they have.

        Returns its kid. Raises Refused(CONFLICT) when no standby is published (the background loop makes one within seconds).
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
        kid: str = row.kid
        return kid

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
                private = self._generate()
                unit.add(self._row(private, unit.now, signs_from=unit.now))
            else:
                heir.signs_from, heir.is_standby = unit.now, 0
                unit.session.flush()
        _count_up(unit)
        unit.after_commit(self.load)

    def import_pem(self, unit: Unit, pem: bytes) -> KeyInfo:
        """Take a private key in PEM as the standby; it signs with the algorithm that `IDENTITY_SIGNING_ALG` names.

        Raises Refused(VALIDATION) for a key that is weak, of another algorithm, or none.
        """
        try:
            private = serialization.load_pem_private_key(pem, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
            raise Refused(VALIDATION.saying("That is not an unencrypted PEM private key"), cause=exc) from exc
        algorithm = algorithm_of(private)
        if algorithm is None or algorithm.name != self._settings.signing_alg:
            wanted = "an RSA key" if self._settings.signing_alg == "RS256" else "a P-256 key"
            raise Refused(VALIDATION.saying(f"That is not {wanted}, which IDENTITY_SIGNING_ALG asks for"))
        assert isinstance(private, PrivateKey)
        public = private.public_key()
        if isinstance(public, RSAPublicKey):
            check_rsa(public)
        row = self._row(private, unit.now, is_standby=1)
        if unit.session.get(SigningKey, row.kid) is not None:
            raise Refused(CONFLICT.saying("That key is in the ring already"))
        unit.execute(delete(SigningKey).where(SigningKey.is_standby == 1))
        unit.add(row)
        _count_up(unit)
        unit.after_commit(self.load)
        return KeyInfo(row.kid, "next", algorithm.name, private.key_size, unit.now, None)

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
            KeyInfo(k.kid, self._state(k, now), k.algorithm.name, k.public.key_size, k.published_at, k.signs_from)
            for k in self._keys
        ]

    def algorithms(self) -> tuple[str, ...]:
        """What verifiers may meet now: the algorithms of the published keys, that of the active one first."""
        now = self._clock.now()
        published = {key.algorithm.name for key in self._keys if not self._is_spent(key, now)}
        return tuple(sorted(published, key=lambda name: (name != self._active(now).algorithm.name, name)))

    def is_ready(self) -> bool:
        """Whether some key may sign; see `_active`."""
        return any(key.signs_from is not None for key in self._keys)

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
        dated = [key for key in self._keys if key.signs_from is not None]
        if not dated:
            raise Refused(UNAVAILABLE, detail="the ring has no key that may sign", retry_after_seconds=1)
        signing = [key for key in dated if key.signs_from is not None and key.signs_from <= now]
        if not signing:
            # The clock was ahead when the first key was made. It is published as long as it is there, so it signs.
            return min(dated, key=lambda key: (key.signs_from or now, key.kid))
        return max(signing, key=lambda key: (key.signs_from or now, key.kid))

    def _state(self, key: LoadedKey, now: datetime) -> str:
        if key.signs_from is not None and key.kid == self._active(now).kid:
            return "active"
        return "next" if key.signs_from is None or key.signs_from > now else "retired"

    def _is_spent(self, key: LoadedKey, now: datetime) -> bool:
        """Whether every token that this key can have signed is dead, for verifiers with a slow clock too."""
        if key.signs_from is None or key.signs_from > now or self._state(key, now) == "active":
            return False
        successors = [
            k.signs_from for k in self._keys if k.signs_from is not None and key.signs_from < k.signs_from <= now
        ]
        # Another process may sign with this key until it has seen the rotation.
        longest = self._settings.longest_token_seconds
        return bool(successors) and later(min(successors), longest + SKEW_SECONDS + _RELOAD_SECONDS) <= now

    def _generate(self) -> PrivateKey:
        return ALGORITHMS[self._settings.signing_alg].generate(self._settings.rsa_bits)

    def _row(self, private: PrivateKey, now: datetime, **state: Any) -> SigningKey:
        kid = thumbprint(_known(private), private.public_key())
        plain = private.private_bytes(
            serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return SigningKey(
            kid=kid, sealed=self.vault.seal(plain, context=f"signing_key:{kid}"), published_at=now, **state
        )

    def _open(self, row: SigningKey) -> PrivateKey:
        try:
            plain = self.vault.open(row.sealed, context=f"signing_key:{row.kid}")
        except Unsealable as exc:
            raise BadSettings("the master key does not open the signing keys: restore the right one") from exc
        # The bytes were authenticated by the seal, so the slow consistency check of the key would tell nothing new.
        private = serialization.load_der_private_key(plain, password=None, unsafe_skip_rsa_key_validation=True)
        assert isinstance(private, PrivateKey)
        return private


def _shown(header: str, payload: str) -> dict[str, str]:
    """What a stranger's token says of itself, for the explanation of its refusal: short, and believed by nobody."""
    shown: dict[str, str] = {}
    for part, names in ((header[:1024], ("alg", "typ", "kid")), (payload[:8192], ("iss",))):
        try:
            said = json.loads(decode_base64url(part) or b"")
        except (ValueError, RecursionError):
            continue
        for name in names if isinstance(said, dict) else ():
            value = said.get(name)
            if isinstance(value, str) and value.isprintable():
                shown[name] = value[:64] if name != "iss" else value[:200]
    return shown


def _count_up(unit: Unit) -> None:
    unit.execute(update(RingVersion).where(RingVersion.id == 1).values(version=RingVersion.version + 1))


def _loaded(row: SigningKey, private: PrivateKey) -> LoadedKey:
    algorithm, public = _known(private), private.public_key()
    header = _header(algorithm, ACCESS_TOKEN, row.kid)
    jwk = {"use": "sig", "alg": algorithm.name, "kid": row.kid, **algorithm.members(public)}
    return LoadedKey(row.kid, algorithm, private, public, row.published_at, row.signs_from, header, jwk)


def _known(private: PrivateKey) -> Algorithm:
    algorithm = algorithm_of(private)
    assert algorithm is not None, "only such keys come into the ring"
    return algorithm


def _header(algorithm: Algorithm, typ: str, kid: str) -> str:
    return encode_base64url(_encode({"alg": algorithm.name, "typ": typ, "kid": kid}).encode())
