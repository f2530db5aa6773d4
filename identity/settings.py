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
from typing import Any, Final
from urllib.parse import SplitResult, unquote, urlsplit

from identity.environment import PREFIX, settings_in

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://([a-z0-9_][a-z0-9._-]*|\[[0-9a-f:.]+\])(:[1-9][0-9]{0,4})?", re.ASCII)
_DEFAULT_PORT = re.compile(r"http://.*:80|https://.*:443")
_URL = re.compile(r"https://[!-~]{1,500}", re.ASCII)
_ADDRESS = r"[\w.!#$%&'*+/=?^`{|}~-]{1,64}@[a-zA-Z0-9-]+(?:\.[a-zA-Z0-9-]+)*"
_SENDER = re.compile(rf"""{_ADDRESS}|(?:"[ !#-;=?A-\[\]-~]*"|[ \w.!#$%&'*+/=?^`{{|}}~-]+) <{_ADDRESS}>""", re.ASCII)
_LIMIT = re.compile(r"[1-9][0-9]{0,8}/(second|minute|hour|day)")
_MAIL_LIMIT = re.compile(r"[1-9][0-9]{0,2}/(([1-9][0-9]? )?minutes?|(([1-9]|1[0-9]|2[0-3]) )?hours?)")


class BadSettings(ValueError):
    """The environment holds values that this service will not run with; the message lists all of them."""


_YEAR: Final = 366 * 86_400
_UNIX_PATH_BYTES: Final = 107
_UNIX: Final = "unix"
_SPELLINGS: Final = (
    ("database_url", "postgres://", "postgresql://"),
    ("redis_url", "valkey://", "redis://"),
    ("redis_url", "valkeys://", "rediss://"),
)


def _option(default: Any, meaning: str, *, secret: bool = False, bounds: tuple[int, int] | None = None) -> Any:
    """A setting; `bounds` are the least and the greatest value of a number."""
    data = {"meaning": meaning, "secret": secret, "bounds": bounds or (0, _YEAR)}
    return dataclasses.field(default=default, metadata=data, repr=not secret)


_Check = tuple[str, bool, str]
"""A field, whether its value will do, and what to say if not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The service's configuration. Build it with `from_env`, or field by field in tests."""

    # Where it runs
    database_url: str = _option(
        "sqlite:///var/identity.db", "SQLAlchemy URL; `sqlite:///PATH` or `postgresql://`", secret=True
    )
    database_pooler: str = _option(
        "none",
        "`transaction` where PgBouncer or the like stands before PostgreSQL and gives out transactions; else `none`",
    )
    redis_url: str = _option(
        "", "Redis protocol URL of the shared rate limits; empty: embedded, shared by one host's processes", secret=True
    )
    logo_url: str = _option("", "https address of a picture at the head of mails; empty: none")
    issuer: str = _option("http://127.0.0.1:8000", "the `iss` of every token and the base of the metadata")
    name: str = _option(
        "", "what people read as the name of this service, in authenticator apps and mails; empty: the issuer's host"
    )
    bind: str = _option("127.0.0.1:8000", "host:port, or `unix:PATH`, to listen on")
    socket_mode: str = _option("0660", "who may connect to a `unix:` socket, in octal")
    metrics_bind: str = _option("", "host:port that serves `/metrics`; empty: nowhere")
    keys_dir: Path = _option(Path("keys"), "directory of `master.key`")
    master_keys: tuple[str, ...] = _option((), "base64 master keys, newest first; overrides `keys_dir`", secret=True)
    trusted_proxies: tuple[str, ...] = _option(
        (),
        "networks whose `X-Forwarded-For` is believed, right to left; `unix`: whoever connects to the `unix:` socket, for one hop",
    )
    workers: int = _option(0, "server processes; 0: the processors, shared among the workers", bounds=(0, 1_024))
    threads: int = _option(8, "threads of each process for everything but the hot routes", bounds=(1, 256))
    request_timeout_seconds: int = _option(15, "how long a client may take to send its request", bounds=(1, 3_600))
    keepalive_seconds: int = _option(
        75,
        "how long a connection is kept open for the next request; proxies in front keep it shorter",
        bounds=(1, 3_600),
    )
    graceful_stop_seconds: int = _option(20, "how long a stopping process lets requests finish", bounds=(1, 3_600))
    development: bool = _option(
        False,
        "permits what is unsafe in production: an http issuer elsewhere than on loopback, GraphQL introspection, `identity testkit`",
    )
    console: str = _option(
        "local",
        "the pages of `/console`: `local` (the machine of an embedded service alone), `on` (every administrator and owner) or `off`",
    )
    log_level: str = _option("info", "`debug`, `info`, `warning` or `error`")

    # Mail
    mail_url: str = _option(
        "file:var/mail", "`smtp://user:pass@host:port`, `smtps://...`, or `file:DIR` (one .eml per mail)", secret=True
    )
    mail_from: str = _option("identity@localhost", "the sender of every mail")
    mail_plaintext: bool = _option(
        False, "permits an SMTP relay beyond loopback that offers no STARTTLS; never with a password"
    )
    portal_urls: tuple[str, ...] = _option((), "URL prefixes that an invitation may point at")

    # Tokens
    origins: tuple[str, ...] = _option((), "origins that may ask for tokens; empty: any")
    require_origin: bool = _option(False, "refuse a token request without an `Origin`")
    audience: str = _option("", "the `aud` where no origin and no application names one; empty: the issuer")
    user_claims: tuple[str, ...] = _option((), "personal claims added to user tokens: `email`, `name`")
    user_token_seconds: int = _option(86_400, "life of the tokens of `/user/token` and GraphQL", bounds=(1, _YEAR))
    application_token_seconds: int = _option(
        86_400, "life of an application's tokens where it does not set its own", bounds=(1, _YEAR)
    )
    federated_token_seconds: int = _option(
        3_600, "longest life of the tokens that a workload's own token earns", bounds=(60, 86_400)
    )
    access_token_seconds: int = _option(
        3_600, "life of the tokens of `/auth/*`, `/session/token` and `/keypair/token`", bounds=(1, _YEAR)
    )
    status_ttl_seconds: int = _option(30, "how long verifiers may cache a status list", bounds=(1, 1_800))
    signing_alg: str = _option("RS256", "what new signing keys sign with: RS256, which every verifier reads, or ES256")
    rsa_bits: int = _option(2_048, "size of new signing keys: 2048, 3072 or 4096")
    key_rotation_days: int = _option(90, "how long a signing key signs; 0: rotate by hand only", bounds=(0, 3_660))
    jwks_max_age_seconds: int = _option(300, "how long verifiers may cache the public keys", bounds=(0, 86_400))

    # Workloads without a secret
    trusted_issuers: tuple[str, ...] = _option(
        (), "issuers whose keys may be fetched, to the letter: https, or http on loopback in development"
    )

    # Sessions and second factors
    session_idle_seconds: int = _option(
        86_400, "an emailed-code session ends after this long without `extend`", bounds=(1, 10 * _YEAR)
    )
    session_absolute_seconds: int = _option(2_592_000, "no session outlives this", bounds=(1, 10 * _YEAR))
    refresh_idle_seconds: int = _option(
        604_800, "a refresh token dies after this long without use", bounds=(1, 10 * _YEAR)
    )
    refresh_grace_seconds: int = _option(
        10, "how long the previous refresh token still answers with the same successor", bounds=(0, 3_600)
    )
    challenge_seconds: int = _option(300, "how long a login waits for its second step", bounds=(1, 86_400))
    recent_login_seconds: int = _option(
        900,
        "how young a login must be to change factors and passwords, and for what cannot be undone",
        bounds=(1, _YEAR),
    )
    second_factor: str = _option(
        "always", "`always`: users without TOTP get an emailed code; `enrolled`: they sign in at once"
    )
    totp_drift_steps: int = _option(1, "how many 30 s steps a TOTP code may be off, 0 or 1", bounds=(0, 1))
    fixed_otp: bool = _option(False, "permits one-time codes that an administrator fixes for a user")
    registration: bool = _option(True, "permits self-registration by `POST /user`")

    # Passwords
    argon2_time_cost: int = _option(2, "Argon2id passes", bounds=(1, 100))
    argon2_memory_kib: int = _option(19_456, "Argon2id memory", bounds=(8, 4_194_304))
    hash_concurrency: int = _option(
        0, "password hashes at once in a process; 0: one for each processor", bounds=(0, 1_024)
    )
    hash_wait_seconds: int = _option(5, "how long a login waits for its turn to hash before 503", bounds=(1, 300))
    password_min_length: int = _option(8, "shortest password, in characters", bounds=(8, 64))

    # Limits
    limit_auth: str = _option("10/minute", "logins, per client address; `off` for none")
    limit_mail: str = _option(
        "5/10 minutes",
        "codes mailed to one address, per client address, and four times as many over all clients; `off` for none",
    )
    limit_application: str = _option("600/minute", "application tokens, per client and client address")
    limit_standard: str = _option("120/minute", "authenticated routes, per tenant or subject")
    limit_ai_assisted: str = _option("20/minute", "`/verify?tier=ai-assisted`, per tenant")
    limit_bulk_upload: str = _option("5/minute", "`/verify?tier=bulk-upload`, per tenant")

    # Keeping
    audit_days: int = _option(400, "how long audit events are kept", bounds=(1, 36_600))
    explain_days: int = _option(30, "how long a refusal can be explained by its `x-error-id`", bounds=(1, 3_660))
    explain_per_minute: int = _option(
        300,
        "refusals of one client address that are kept for that; of a process, four times as many",
        bounds=(0, 1_000_000),
    )

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Settings:
        """Read `IDENTITY_*`. All faults are gathered into one BadSettings; an unknown name is a fault."""
        fields = {PREFIX + field.name.upper(): field for field in dataclasses.fields(cls)}
        secret = [name for name, field in fields.items() if field.metadata["secret"]]
        texts, faults = settings_in(environ, known=fields, secret=secret)
        values: dict[str, Any] = {}
        for name, text in texts.items():
            try:
                values[fields[name].name] = _parse(fields[name].default, text)
            except ValueError as exc:
                faults.append(f"{name}: {exc}")
        settings = cls(**values)
        faults += [f"{PREFIX}{name.upper()}: {fault}" for name, fault in settings._faults()]
        if faults:
            raise BadSettings("; ".join(faults))
        return settings

    def __post_init__(self) -> None:
        # Two spellings of one scheme, as hosting companies write them.
        for name, theirs, ours in _SPELLINGS:
            value: str = getattr(self, name)
            if value.startswith(theirs):
                object.__setattr__(self, name, ours + value.removeprefix(theirs))

    @property
    def default_audience(self) -> str:
        return self.audience or self.issuer

    @property
    def longest_token_seconds(self) -> int:
        """No access token lives longer; an application may choose its own life up to a day."""
        return max(self.user_token_seconds, self.application_token_seconds, self.access_token_seconds, 86_400)

    @property
    def service_name(self) -> str:
        """What people read: never with a colon, which authenticator apps take for the end of the issuer."""
        return self.name or urlsplit(self.issuer).hostname or "identity"

    @property
    def worker_count(self) -> int:
        return self.workers or _processors()

    @property
    def hash_slots(self) -> int:
        """How many hashes a process computes at once: together the processes use every processor, and no more memory than that needs."""
        return self.hash_concurrency or max(1, _processors() // self.worker_count)

    @property
    def is_pooled(self) -> bool:
        """A transaction pooler stands before PostgreSQL."""
        return self.database_pooler == "transaction"

    @property
    def is_embedded(self) -> bool:
        """Everything on this host: SQLite and no Redis."""
        return self.database_url.startswith("sqlite") and not self.redis_url

    def _faults(self) -> list[tuple[str, str]]:
        """What is wrong with these values together, as (field, reason)."""
        checks = [*self._checks_of_values(), *self._checks_of_lists(), *self._checks_of_bounds()]
        faults = [(name, reason) for name, holds, reason in checks if not holds]
        reasons = [
            ("database_url", _fault_of_database_url(self.database_url)),
            ("redis_url", _fault_of_redis_url(self.redis_url)),
            ("mail_url", _fault_of_mail_url(self.mail_url)),
            ("bind", _fault_of_bind(self.bind, or_unix=True)),
            ("metrics_bind", _fault_of_bind(self.metrics_bind, or_unix=False) if self.metrics_bind else ""),
            *(("trusted_proxies", _fault_of_proxy(text)) for text in self.trusted_proxies),
        ]
        return faults + [(name, reason) for name, reason in reasons if reason]

    def _checks_of_values(self) -> list[_Check]:
        return [
            ("issuer", _is_issuer(self.issuer), "must be an http(s) URL without query, fragment or trailing slash"),
            (
                "issuer",
                not _is_issuer(self.issuer) or not urlsplit(self.issuer).path,
                "must have no path: the service answers at the root of its host only, so give it a host name of its own",
            ),
            (
                "issuer",
                self.development or _is_safe(self.issuer),
                "must be https, or loopback, or set IDENTITY_DEVELOPMENT=1",
            ),
            (
                "mail_from",
                bool(_SENDER.fullmatch(self.mail_from)),
                "must be one address in ASCII: name@host, or Name <name@host>",
            ),
            (
                "logo_url",
                not self.logo_url or bool(_URL.fullmatch(self.logo_url)),
                "must be an https URL",
            ),
            (
                "name",
                len(self.name) <= 64 and ":" not in self.name and (self.name == "" or self.name.isprintable()),
                "must be at most 64 printable characters without a colon",
            ),
            ("signing_alg", self.signing_alg in ("RS256", "ES256"), "must be RS256 or ES256"),
            ("rsa_bits", self.rsa_bits in (2048, 3072, 4096), "must be 2048, 3072 or 4096"),
            ("second_factor", self.second_factor in ("always", "enrolled"), "must be `always` or `enrolled`"),
            ("database_pooler", self.database_pooler in ("none", "transaction"), "must be none or transaction"),
            (
                "log_level",
                self.log_level in ("debug", "info", "warning", "error"),
                "must be debug, info, warning or error",
            ),
            ("console", self.console in ("local", "on", "off"), "must be `local`, `on` or `off`"),
            ("user_claims", set(self.user_claims) <= {"email", "name"}, "knows `email` and `name` only"),
            (
                "socket_mode",
                bool(re.fullmatch(r"0?[0-7]{3}", self.socket_mode)),
                "must be three octal digits, like 0660",
            ),
            ("metrics_bind", self.metrics_bind != self.bind, "must be another address than IDENTITY_BIND"),
            (
                "bind",
                not self.bind.startswith("unix:") or _UNIX in self.trusted_proxies,
                "a unix socket needs the word `unix` in IDENTITY_TRUSTED_PROXIES, or all clients share one address",
            ),
        ]

    def _checks_of_lists(self) -> list[_Check]:
        origins = [
            (
                "origins",
                bool(_ORIGIN.fullmatch(o)) and not _DEFAULT_PORT.fullmatch(o),
                f"{o!r} is not scheme://host[:port] as browsers send it: lower case, no default port, no slash at the end",
            )
            for o in self.origins
        ]
        portals = [
            ("portal_urls", u.startswith(("https://", "http://")), f"{u!r} is not an http(s) URL")
            for u in self.portal_urls
        ]
        issuers = [
            (
                "trusted_issuers",
                _is_trustable(u, development=self.development),
                f"{u!r} is no https URL without query and fragment (http: on loopback, with IDENTITY_DEVELOPMENT=1)",
            )
            for u in self.trusted_issuers
        ]
        return origins + portals + issuers

    def _checks_of_bounds(self) -> list[_Check]:
        checks = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "limit_mail":
                fits = value == "off" or bool(_MAIL_LIMIT.fullmatch(value))
                checks.append((field.name, fits, "must be like `5/10 minutes`, within a day, or `off`"))
            elif field.name.startswith("limit_"):
                checks.append(
                    (field.name, value == "off" or bool(_LIMIT.fullmatch(value)), "must be like `10/minute`, or `off`")
                )
            elif isinstance(value, int) and not isinstance(value, bool):
                least, most = field.metadata["bounds"]
                checks.append((field.name, least <= value <= most, f"must be from {least} to {most}"))
        return checks


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
    parts = _split(url)
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
        return False
    return not (parts.query or parts.fragment or parts.username) and not url.endswith(("/", "?", "#"))


def _is_safe(url: str) -> bool:
    parts = _split(url)
    return parts is None or parts.scheme == "https" or parts.hostname in ("127.0.0.1", "localhost", "::1")


def _is_trustable(url: str, *, development: bool) -> bool:
    parts = _split(url)
    if parts is None or parts.query or parts.fragment or parts.username or not url.isascii() or len(url) > 500:
        return False
    loopback = development and parts.scheme == "http" and parts.hostname in ("127.0.0.1", "localhost", "::1")
    return parts.scheme == "https" or loopback


def _split(url: str) -> SplitResult | None:
    """The parts of a URL, or None for what is none; asking for its port is safe then."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return None
    return parts


# Each returns what is wrong, "" for nothing, a URL may hold a password, and is never part of it.


def _fault_of_database_url(url: str) -> str:
    if url.startswith(("sqlite:", "sqlite+pysqlite:")):
        path = re.split(r"[?#]", url.partition(":///")[2])[0]
        if not path or ":memory:" in url or "mode=memory" in url:
            return "names no file, and a database in memory is another one for each process: sqlite:///var/identity.db"
        return ""
    if not url.startswith(("postgresql://", "postgresql+psycopg://")):
        return "must be a sqlite:/// or postgresql:// URL"
    return (
        ""
        if _split(url)
        else "is no URL that can be read: percent-encode what is special in its password, as @ : / ? # [ ]"
    )


def _fault_of_redis_url(url: str) -> str:
    if not url:
        return ""
    if "sentinel" in url.partition("://")[0]:
        return "sentinels cannot be asked, so name what leads to the primary: redis://host:port"
    if not url.startswith(("redis://", "rediss://", "unix://")):
        return "must be a redis, rediss, valkey, valkeys or unix URL"
    parts = _split(url)
    if parts is None:
        return "is no URL that can be read: percent-encode what is special in its password, as @ : / ? # [ ]"
    if not url.startswith("unix://") and not re.fullmatch(r"/?[0-9]{0,4}", parts.path):
        return "ends with the number of a database, or with nothing: redis://host:port/0"
    return ""


def _fault_of_mail_url(url: str) -> str:
    if url.startswith("file:"):
        return "" if url.removeprefix("file:").removeprefix("//") else "names no directory: file:var/mail"
    parts = _split(url)
    usual = "must be smtp://[user:password@]host[:port] or file:DIR, percent-encode what is special in the password"
    if parts is None or parts.scheme not in ("smtp", "smtps") or parts.path not in ("", "/"):
        return usual
    # A `/`, `?` or `#` in a password ends the host early; the password must not be shown to say so.
    if parts.query or parts.fragment or not re.fullmatch(r"[a-zA-Z0-9._:-]+", parts.hostname or "") or parts.port == 0:
        return usual
    if bool(parts.username) != bool(parts.password):
        return "has a user without a password, or a password without a user"
    if not unquote(f"{parts.username or ''}{parts.password or ''}").isprintable():
        return "has a user or a password with characters that cannot be sent"
    return ""


def _fault_of_bind(text: str, *, or_unix: bool) -> str:
    if or_unix and text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not path or len(str(Path(path).absolute()).encode()) > _UNIX_PATH_BYTES:
            return f"names no socket, or one whose path is longer than {_UNIX_PATH_BYTES} bytes: unix:PATH"
        return ""
    found = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})", text, re.ASCII)
    if found is None:
        if text.count(":") > 1 and "[" not in text:
            return "an IPv6 address stands in brackets: [::1]:8000"
        return "must be host:port" + (" or unix:PATH" if or_unix else "")
    return "" if 1 <= int(found[2]) <= 65_535 else "has a port that is not from 1 to 65535"


def _fault_of_proxy(text: str) -> str:
    if text == _UNIX:
        return ""
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        return f"{text!r} is not a network"
    if network.prefixlen == 0:
        return f"{text!r} is everybody, so that every client could choose its own address: name the networks of your proxies"
    return ""
