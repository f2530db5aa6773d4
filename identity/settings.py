"""Everything that an operator can choose, read once from the environment and then frozen.

Each field states its default, its unit (in its name) and one line of meaning; `identity settings` and the README's
table are made from them.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

PREFIX = "IDENTITY_"
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://([a-z0-9_][a-z0-9._-]*|\[[0-9a-f:.]+\])(:[1-9][0-9]{0,4})?", re.ASCII)
_DEFAULT_PORT = re.compile(r"http://.*:80|https://.*:443")
_LIMIT = re.compile(r"[1-9][0-9]{0,8}/(second|minute|hour|day)")


class BadSettings(ValueError):
    """The environment holds values that this service will not run with; the message lists all of them."""


def _option(default: Any, meaning: str, *, secret: bool = False) -> Any:
    return dataclasses.field(default=default, metadata={"meaning": meaning, "secret": secret}, repr=not secret)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The service's configuration. Build it with `from_env`, or field by field in tests."""

    # Where it runs
    database_url: str = _option(
        "sqlite:///var/identity.db", "SQLAlchemy URL; `sqlite:///` or `postgresql://`", secret=True
    )
    redis_url: str = _option(
        "", "Redis protocol URL of the shared rate limits; empty: embedded, shared by one host's processes", secret=True
    )
    issuer: str = _option("http://127.0.0.1:8000", "the `iss` of every token and the base of the metadata")
    bind: str = _option("127.0.0.1:8000", "host:port, or `unix:PATH`, to listen on")
    metrics_bind: str = _option("", "host:port that serves `/metrics`; empty: nowhere")
    keys_dir: Path = _option(Path("keys"), "directory of `master.key`")
    master_keys: tuple[str, ...] = _option((), "base64 master keys, newest first; overrides `keys_dir`", secret=True)
    trusted_proxies: tuple[str, ...] = _option((), "networks whose `X-Forwarded-For` is believed, right to left")
    workers: int = _option(0, "server processes; 0: one for each processor")
    threads: int = _option(8, "threads of each process for everything but the hot routes")
    request_timeout_seconds: int = _option(15, "how long a client may take to send its request")
    graceful_stop_seconds: int = _option(20, "how long a stopping process lets requests finish")
    development: bool = _option(
        False, "permits what is unsafe in production: an http issuer elsewhere than on loopback, GraphQL introspection"
    )
    log_level: str = _option("info", "`debug`, `info`, `warning` or `error`")

    # Mail
    mail_url: str = _option(
        "file:var/mail", "`smtp://user:pass@host:port`, `smtps://...`, or `file:DIR` (one .eml per mail)", secret=True
    )
    mail_from: str = _option("identity@localhost", "the sender of every mail")
    portal_urls: tuple[str, ...] = _option((), "URL prefixes that an invitation may point at")

    # Tokens
    origins: tuple[str, ...] = _option((), "origins that may ask for tokens; empty: any")
    require_origin: bool = _option(False, "refuse a token request without an `Origin`")
    audience: str = _option("", "the `aud` where no origin and no application names one; empty: the issuer")
    user_claims: tuple[str, ...] = _option((), "personal claims added to user tokens: `email`, `name`")
    user_token_seconds: int = _option(86_400, "life of the tokens of `/user/token` and GraphQL")
    application_token_seconds: int = _option(86_400, "life of an application's tokens where it does not set its own")
    access_token_seconds: int = _option(3_600, "life of the tokens of `/auth/*`, `/session/token` and `/keypair/token`")
    rsa_bits: int = _option(2_048, "size of new signing keys: 2048, 3072 or 4096")
    key_rotation_days: int = _option(90, "how long a signing key signs; 0: rotate by hand only")
    jwks_max_age_seconds: int = _option(300, "how long verifiers may cache the public keys")

    # Sessions and second factors
    session_idle_seconds: int = _option(86_400, "an emailed-code session ends after this long without `extend`")
    session_absolute_seconds: int = _option(2_592_000, "no session outlives this")
    refresh_idle_seconds: int = _option(604_800, "a refresh token dies after this long without use")
    refresh_grace_seconds: int = _option(
        10, "how long the previous refresh token still answers with the same successor"
    )
    challenge_seconds: int = _option(300, "how long a login waits for its second step")
    recent_login_seconds: int = _option(900, "how young a login must be to change factors and passwords")
    second_factor: str = _option(
        "always", "`always`: users without TOTP get an emailed code; `enrolled`: they sign in at once"
    )
    totp_drift_steps: int = _option(0, "how many 30 s steps a TOTP code may be off, 0 or 1")
    fixed_otp: bool = _option(False, "permits one-time codes that an administrator fixes for a user")
    registration: bool = _option(True, "permits self-registration by `POST /user`")

    # Passwords
    argon2_time_cost: int = _option(2, "Argon2id passes")
    argon2_memory_kib: int = _option(19_456, "Argon2id memory")
    hash_concurrency: int = _option(0, "password hashes at once in a process; 0: one for each processor")
    hash_wait_seconds: int = _option(5, "how long a login waits for its turn to hash before 503")
    password_min_length: int = _option(8, "shortest password, in characters")

    # Limits
    limit_auth: str = _option("10/minute", "logins, per client address; `off` for none")
    limit_application: str = _option("600/minute", "application tokens, per client and client address")
    limit_standard: str = _option("120/minute", "authenticated routes, per tenant or subject")
    limit_ai_assisted: str = _option("20/minute", "`/verify?tier=ai-assisted`, per tenant")
    limit_bulk_upload: str = _option("5/minute", "`/verify?tier=bulk-upload`, per tenant")

    # Keeping
    audit_days: int = _option(400, "how long audit events are kept")
    explain_days: int = _option(30, "how long a refusal can be explained by its `x-error-id`")
    explain_per_minute: int = _option(
        300, "refusals of one client address that are kept for that; of a process, four times as many"
    )

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Settings:
        """Read `IDENTITY_*`. All faults are gathered into one BadSettings; an unknown name is a fault."""
        faults: list[str] = []
        values: dict[str, Any] = {}
        fields = {PREFIX + field.name.upper(): field for field in dataclasses.fields(cls)}
        for name, text in environ.items():
            if not name.startswith(PREFIX) or name.startswith(PREFIX + "TEST_"):
                continue
            if name not in fields:
                faults.append(f"{name}: no such setting")
                continue
            try:
                values[fields[name].name] = _parse(fields[name].default, text.strip())
            except ValueError as exc:
                faults.append(f"{name}: {exc}")
        settings = cls(**values)
        faults += [f"{PREFIX}{name.upper()}: {fault}" for name, fault in settings._faults()]
        if faults:
            raise BadSettings("; ".join(faults))
        return settings

    @property
    def default_audience(self) -> str:
        return self.audience or self.issuer

    @property
    def worker_count(self) -> int:
        return self.workers or _processors()

    @property
    def hash_slots(self) -> int:
        return self.hash_concurrency or _processors()

    @property
    def is_embedded(self) -> bool:
        """Everything on this host: SQLite and no Redis."""
        return self.database_url.startswith("sqlite") and not self.redis_url

    def _faults(self) -> list[tuple[str, str]]:
        """What is wrong with these values together, as (field, reason)."""
        checks = [
            ("issuer", _is_issuer(self.issuer), "must be an http(s) URL without query, fragment or trailing slash"),
            (
                "issuer",
                self.development or _is_safe(self.issuer),
                "must be https, or loopback, or set IDENTITY_DEVELOPMENT=1",
            ),
            (
                "database_url",
                self.database_url.startswith(("sqlite://", "postgresql://", "postgresql+psycopg://")),
                "must be a sqlite or postgresql URL",
            ),
            (
                "redis_url",
                not self.redis_url or self.redis_url.startswith(("redis://", "rediss://", "unix://")),
                "must be a redis, rediss or unix URL",
            ),
            (
                "mail_url",
                self.mail_url.startswith(("smtp://", "smtps://", "file:")),
                "must be an smtp, smtps or file URL",
            ),
            (
                "mail_from",
                "@" in self.mail_from and self.mail_from.isascii() and self.mail_from.isprintable(),
                "must be an address",
            ),
            ("rsa_bits", self.rsa_bits in (2048, 3072, 4096), "must be 2048, 3072 or 4096"),
            ("second_factor", self.second_factor in ("always", "enrolled"), "must be `always` or `enrolled`"),
            ("totp_drift_steps", self.totp_drift_steps in (0, 1), "must be 0 or 1"),
            (
                "log_level",
                self.log_level in ("debug", "info", "warning", "error"),
                "must be debug, info, warning or error",
            ),
            ("argon2_memory_kib", self.argon2_memory_kib >= 8, "must be at least 8"),
            ("argon2_time_cost", self.argon2_time_cost >= 1, "must be at least 1"),
            ("password_min_length", 8 <= self.password_min_length <= 64, "must be from 8 to 64"),
            ("user_claims", set(self.user_claims) <= {"email", "name"}, "knows `email` and `name` only"),
            ("jwks_max_age_seconds", 0 <= self.jwks_max_age_seconds <= 86_400, "must be from 0 to 86400"),
            ("bind", bool(re.fullmatch(r"(unix:.+|.+:[0-9]{1,5})", self.bind)), "must be host:port or unix:PATH"),
            (
                "metrics_bind",
                self.metrics_bind == "" or bool(re.fullmatch(r".+:[0-9]{1,5}", self.metrics_bind)),
                "must be host:port",
            ),
        ]
        checks += [
            (
                "origins",
                bool(_ORIGIN.fullmatch(o)) and not _DEFAULT_PORT.fullmatch(o),
                f"{o!r} is not scheme://host[:port] as browsers send it: lower case, no default port, no slash at the end",
            )
            for o in self.origins
        ]
        checks += [("trusted_proxies", _is_network(n), f"{n!r} is not a network") for n in self.trusted_proxies]
        checks += [
            ("portal_urls", u.startswith(("https://", "http://")), f"{u!r} is not an http(s) URL")
            for u in self.portal_urls
        ]
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name.startswith("limit_"):
                checks.append(
                    (field.name, value == "off" or bool(_LIMIT.fullmatch(value)), "must be like `10/minute`, or `off`")
                )
            elif isinstance(value, int):
                checks.append((field.name, 0 <= value < 10**10, "must not be negative"))
            if field.name.endswith("_seconds") and field.name not in ("jwks_max_age_seconds", "refresh_grace_seconds"):
                checks.append((field.name, value > 0, "must be positive"))
        return [(name, reason) for name, holds, reason in checks if not holds]


def describe() -> list[tuple[str, str, str, str]]:
    """Every setting as (variable, type, default, meaning), in the order of the source."""
    kinds = {bool: "0 or 1", int: "integer", str: "text", tuple: "comma list", Path: "path"}
    rows = []
    for field in dataclasses.fields(Settings):
        kind = next(name for kind, name in kinds.items() if isinstance(field.default, kind))
        default = ",".join(field.default) if isinstance(field.default, tuple) else str(field.default)
        if isinstance(field.default, bool):
            default = str(int(field.default))
        rows.append((PREFIX + field.name.upper(), kind, default, field.metadata["meaning"]))
    return rows


def _parse(default: Any, text: str) -> Any:
    if isinstance(default, bool):
        if text not in ("0", "1"):
            raise ValueError("must be 0 or 1")
        return text == "1"
    if isinstance(default, int):
        if not re.fullmatch(r"[0-9]{1,10}", text, re.ASCII):
            raise ValueError("must be a whole number")
        return int(text)
    if isinstance(default, tuple):
        return tuple(part.strip() for part in text.split(",") if part.strip())
    return type(default)(text) if not isinstance(default, Path) else Path(text)


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _is_issuer(url: str) -> bool:
    parts = urlsplit(url)
    plain = not (parts.query or parts.fragment or parts.username) and not url.endswith("/")
    return parts.scheme in ("http", "https") and bool(parts.hostname) and plain


def _is_safe(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme == "https" or parts.hostname in ("127.0.0.1", "localhost", "::1")


def _is_network(text: str) -> bool:
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        return False
    return True
