"""Settings: read once, every fault told at once, secrets never shown, unsafe combinations refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from identity.settings import PREFIX, BadSettings, Settings, describe
from tests.world import MASTER_KEY

SECRETS = {
    "database_url": "postgresql://identity:hunter2@db/identity",
    "redis_url": "redis://:hunter2@cache/0",
    "mail_url": "smtp://mailer:hunter2@mail:587",
}


def faults_of(**environment: str) -> list[str]:
    """What `from_env` says of this environment, one fault each."""
    with pytest.raises(BadSettings) as caught:
        Settings.from_env({PREFIX + name.upper(): value for name, value in environment.items()})
    return str(caught.value).split("; ")


def test_nothing_set_is_a_working_service() -> None:
    settings = Settings.from_env({})
    assert settings == Settings()
    assert settings.is_embedded
    assert settings.default_audience == settings.issuer == "http://127.0.0.1:8000"
    assert settings.worker_count >= 1
    assert settings.hash_slots >= 1


def test_each_kind_of_value_is_read() -> None:
    settings = Settings.from_env(
        {
            "IDENTITY_ISSUER": " https://auth.acme.example ",
            "IDENTITY_WORKERS": "3",
            "IDENTITY_REQUIRE_ORIGIN": "1",
            "IDENTITY_ORIGINS": "https://a.example, https://b.example:8443,",
            "IDENTITY_KEYS_DIR": "/run/keys",
            "IDENTITY_LIMIT_AUTH": "off",
            "PATH": "/bin",
            "IDENTITY_TEST_DATABASE_URL": "ours, not the service's",
        }
    )
    assert settings.issuer == "https://auth.acme.example"
    assert settings.worker_count == 3
    assert settings.require_origin is True
    assert settings.origins == ("https://a.example", "https://b.example:8443")
    assert settings.keys_dir == Path("/run/keys")
    assert settings.limit_auth == "off"


def test_every_fault_is_told_at_once() -> None:
    faults = faults_of(isuer="https://auth.example", workers="many", rsa_bits="1024", bind="nowhere", fixed_otp="yes")
    assert sorted(fault.partition(":")[0] for fault in faults) == [
        "IDENTITY_BIND",
        "IDENTITY_FIXED_OTP",
        "IDENTITY_ISUER",
        "IDENTITY_RSA_BITS",
        "IDENTITY_WORKERS",
    ]


def test_an_unknown_name_is_a_fault_because_it_is_a_typing_error() -> None:
    assert faults_of(limit_auht="5/minute") == ["IDENTITY_LIMIT_AUHT: no such setting"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("issuer", "auth.example"),
        ("issuer", "ftp://auth.example"),
        ("issuer", "https://auth.example/"),
        ("issuer", "https://auth.example?x=1"),
        ("issuer", "https://auth.example#x"),
        ("issuer", "https://user@auth.example"),
        ("issuer", ""),
        ("issuer", "https://auth.example/id"),
        ("issuer", "https://auth.example:port"),
        ("issuer", "https://auth.example?"),
        ("database_url", "mysql://db/identity"),
        ("database_url", "identity.db"),
        ("database_url", "sqlite://"),
        ("database_url", "sqlite:///"),
        ("database_url", "sqlite:///:memory:"),
        ("database_url", "sqlite:///file:x?mode=memory&uri=true"),
        ("database_url", "sqlite+aiosqlite:///x.db"),
        ("database_url", "postgresql+asyncpg://db/identity"),
        ("database_url", "postgresql://ada:p@ss[word@db/identity"),
        ("database_url", "postgresql://db:port/identity"),
        ("redis_url", "http://cache"),
        ("redis_url", "redis+sentinel://a:26379,b:26379/primary"),
        ("redis_url", "redis://cache/first"),
        ("redis_url", "redis://cache:x"),
        ("mail_url", "imap://mail"),
        ("mail_url", "file:"),
        ("mail_url", "smtp://"),
        ("mail_url", "smtp://mail:0"),
        ("mail_url", "smtp://mail:99999"),
        ("mail_url", "smtp://ada@mail"),
        ("mail_url", "smtp://:secret@mail"),
        ("mail_url", "smtp://ada:p/w@mail"),
        ("mail_url", "smtp://ada:p%0Aw@mail"),
        ("mail_url", "smtp://ma%20il"),
        ("mail_from", "nobody"),
        ("mail_from", "a@@b"),
        ("mail_from", "@b.example"),
        ("mail_from", "a@"),
        ("mail_from", "a@b.example, c@d.example"),
        ("mail_from", "Acme, Inc. <a@b.example>"),
        ("mail_from", "Acme <a@b.example"),
        ("mail_from", "a@b.example>"),
        ("mail_from", "a@b..example"),
        ("mail_from", "identity@b\u00fccher.example"),
        ("bind", "8000"),
        ("bind", "unix:"),
        ("bind", "unix:/run/identity.sock"),
        ("bind", "unix:" + "x" * 108),
        ("bind", "::1:8000"),
        ("bind", "127.0.0.1:0"),
        ("bind", "127.0.0.1:65536"),
        ("bind", "a b:8000"),
        ("socket_mode", "rw"),
        ("socket_mode", "0980"),
        ("socket_mode", "10660"),
        ("metrics_bind", "9000"),
        ("trusted_proxies", "10.0.0.0/33"),
        ("trusted_proxies", "proxy.example"),
        ("trusted_proxies", "0.0.0.0/0"),
        ("trusted_proxies", "10.0.0.0/8,::/0"),
        ("origins", "https://a.example/"),
        ("origins", "a.example"),
        ("origins", "https://a.example:443"),
        ("origins", "http://a.example:80"),
        ("name", "a:b"),
        ("name", "n" * 65),
        ("origins", "*"),
        ("portal_urls", "javascript:alert(1)"),
        ("user_claims", "email,phone"),
        ("rsa_bits", "1024"),
        ("rsa_bits", "2049"),
        ("second_factor", "never"),
        ("totp_drift_steps", "2"),
        ("log_level", "loud"),
        ("argon2_memory_kib", "7"),
        ("argon2_time_cost", "0"),
        ("password_min_length", "7"),
        ("password_min_length", "65"),
        ("jwks_max_age_seconds", "86401"),
        ("user_token_seconds", "0"),
        ("audit_days", "0"),
        ("audit_days", "9999999999"),
        ("threads", "0"),
        ("threads", "257"),
        ("hash_wait_seconds", "301"),
        ("challenge_seconds", "0"),
        ("workers", "-1"),
        ("workers", "1.5"),
        ("workers", "\u0663"),
        ("workers", "99999999999"),
        ("require_origin", "true"),
        ("development", "yes"),
        ("limit_auth", "10"),
        ("limit_auth", "0/minute"),
        ("limit_auth", "10/fortnight"),
        ("limit_auth", "10/minute;20/hour"),
        ("limit_auth", ""),
        ("limit_mail", "5/25 hours"),
        ("limit_mail", "0/minute"),
    ],
)
def test_a_value_that_makes_no_sense_is_named(name: str, value: str) -> None:
    faults = faults_of(**{name: value})
    assert {fault.partition(":")[0] for fault in faults} == {PREFIX + name.upper()}
    assert all(fault.partition(": ")[2] for fault in faults)


def test_every_number_has_bounds_and_its_default_is_within_them() -> None:
    for field in dataclasses.fields(Settings):
        if isinstance(field.default, int) and not isinstance(field.default, bool):
            least, most = field.metadata["bounds"]
            assert 0 <= least <= field.default <= most < 10**9, field.name
            for value, holds in ((least - 1, False), (least, True), (most, True), (most + 1, False)):
                found = [name for name, _ in Settings(**{field.name: value})._faults()]
                assert (field.name not in found) is holds or field.name == "rsa_bits", (field.name, value)


@pytest.mark.parametrize(
    ("name", "given", "read"),
    [
        ("database_url", "postgres://db/identity", "postgresql://db/identity"),
        ("redis_url", "valkey://cache:6379/1", "redis://cache:6379/1"),
        ("redis_url", "valkeys://cache", "rediss://cache"),
        ("redis_url", "unix:///run/redis.sock?db=1", "unix:///run/redis.sock?db=1"),
        ("bind", "[::1]:8000", "[::1]:8000"),
        ("bind", "localhost:8000", "localhost:8000"),
        ("socket_mode", "0600", "0600"),
        ("socket_mode", "666", "666"),
        ("mail_url", "smtp://ada:p%C3%A4ss%2F@mail.example:587", "smtp://ada:p%C3%A4ss%2F@mail.example:587"),
        ("mail_url", "smtps://[2001:db8::1]", "smtps://[2001:db8::1]"),
        ("mail_from", "identity@localhost", "identity@localhost"),
        ("mail_from", '"Acme, Inc." <id+mail@acme.example>', '"Acme, Inc." <id+mail@acme.example>'),
        ("mail_from", "Acme <id@acme.example>", "Acme <id@acme.example>"),
    ],
)
def test_other_spellings_of_the_same_are_understood(name: str, given: str, read: str) -> None:
    assert getattr(Settings.from_env({PREFIX + name.upper(): given}), name) == read


def test_a_unix_bind_goes_with_the_word_for_it() -> None:
    chosen = Settings.from_env({"IDENTITY_BIND": "unix:/run/i.sock", "IDENTITY_TRUSTED_PROXIES": "unix,10.0.0.0/8"})
    assert chosen.trusted_proxies == ("unix", "10.0.0.0/8")


# Secrets in files, and a file of settings.

SECRET_NAMES = ("DATABASE_URL", "REDIS_URL", "MASTER_KEYS", "MAIL_URL")


def test_every_secret_setting_can_stand_in_a_file(tmp_path: Path) -> None:
    values = {name.upper(): value for name, value in SECRETS.items()} | {"MASTER_KEYS": f"{MASTER_KEY}\n{MASTER_KEY}"}
    assert set(values) == set(SECRET_NAMES)
    assert {one.name.upper() for one in dataclasses.fields(Settings) if one.metadata["secret"]} == set(SECRET_NAMES)
    environ = {}
    for name, value in values.items():
        (tmp_path / name).write_text(f"\ufeff{value}\n")
        environ[f"{PREFIX}{name}_FILE"] = str(tmp_path / name)
    settings = Settings.from_env(environ)
    assert settings.master_keys == (MASTER_KEY, MASTER_KEY)
    assert {name: getattr(settings, name) for name in SECRETS} == SECRETS


@pytest.mark.parametrize("name", SECRET_NAMES)
def test_a_secret_that_is_given_both_ways_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_text("hunter2")
    faults = faults_of(**{name: "hunter2", f"{name}_file": str(tmp_path / "secret")})
    assert f"IDENTITY_{name}: is given twice, IDENTITY_{name}_FILE too: keep one of them" in faults
    assert "hunter2" not in "".join(faults)


@pytest.mark.parametrize("content", [None, b"", b" \n", b"\xff\xfe", b"a\0b", b"x" * 70_000])
def test_a_file_that_holds_no_secret_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "secret"
    if content is not None:
        path.write_bytes(content)
    assert any(
        fault.startswith(f"IDENTITY_MASTER_KEYS_FILE: {path}") for fault in faults_of(master_keys_file=str(path))
    )


def test_only_secrets_have_files() -> None:
    assert faults_of(issuer_file="/x") == ["IDENTITY_ISSUER_FILE: no such setting"]


def test_the_environment_wins_over_the_file_of_settings(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(MASTER_KEY)
    path = tmp_path / "env"
    path.write_text(
        "# settings\n\nIDENTITY_WORKERS=3\nexport IDENTITY_THREADS = '5'\nIDENTITY_MAIL_FROM=\"a@b.example\"\nPATH=/bin\n"
        "IDENTITY_MASTER_KEYS=from-the-file\nIDENTITY_TEST_X=1\nIDENTITY_PORT=tcp://10.0.0.1:1\n"
    )
    settings = Settings.from_env(
        {"IDENTITY_ENV_FILE": str(path), "IDENTITY_WORKERS": "2", "IDENTITY_MASTER_KEYS_FILE": str(tmp_path / "key")}
    )
    assert (settings.workers, settings.threads, settings.mail_from) == (2, 5, "a@b.example")
    assert settings.master_keys == (MASTER_KEY,), "by whichever of its two names the environment says it"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("IDENTITY_WORKERS 3\n", "line 1 is not NAME=value"),
        ("\nIDENTITY_ENV_FILE=/x\n", "line 2 names another such file"),
        ("IDENTITY_WORKRES=3\n", "IDENTITY_WORKRES: no such setting"),
        (None, "No such file"),
    ],
)
def test_a_file_of_settings_is_as_strict_as_the_environment(tmp_path: Path, content: str | None, says: str) -> None:
    path = tmp_path / "env"
    if content is not None:
        path.write_text(content)
    (fault,) = faults_of(env_file=str(path))
    assert says in fault


@pytest.mark.parametrize(
    ("issuer", "safe"),
    [
        ("https://auth.example", True),
        ("http://127.0.0.1:8000", True),
        ("http://localhost", True),
        ("http://[::1]:8000", True),
        ("http://auth.example", False),
        ("http://127.0.0.1.evil.example", False),
        ("http://localhost.evil.example", False),
    ],
)
def test_an_http_issuer_is_for_the_loopback_or_development(issuer: str, safe: bool) -> None:
    if safe:
        assert Settings.from_env({"IDENTITY_ISSUER": issuer}).issuer == issuer
    else:
        assert faults_of(issuer=issuer) == [
            "IDENTITY_ISSUER: must be https, or loopback, or set IDENTITY_DEVELOPMENT=1"
        ]
    assert Settings.from_env({"IDENTITY_ISSUER": issuer, "IDENTITY_DEVELOPMENT": "1"}).issuer == issuer


def test_secrets_are_shown_by_no_repr() -> None:
    settings = Settings(master_keys=(MASTER_KEY,), **SECRETS)  # type: ignore[arg-type]
    for shown in (repr(settings), str(settings), f"{settings}", f"{[settings]}"):
        assert "hunter2" not in shown
        assert MASTER_KEY not in shown
        assert "issuer=" in shown


def test_secrets_are_shown_by_no_fault() -> None:
    for name, value in SECRETS.items():
        faults = faults_of(**{name: "x" + value})
        assert "hunter2" not in "".join(faults)


@pytest.mark.parametrize("key", ["", "short", "not base64!", MASTER_KEY[:-4]])
def test_a_bad_master_key_is_refused_at_start_without_showing_it(tmp_path: Path, key: str) -> None:
    from identity.app import create_runtime

    settings = Settings.from_env(
        {"IDENTITY_MASTER_KEYS": f"{MASTER_KEY},{key}x", "IDENTITY_DATABASE_URL": f"sqlite:///{tmp_path}/i.db"}
    )
    with pytest.raises(BadSettings) as caught:
        create_runtime(settings)
    assert "IDENTITY_MASTER_KEYS" in str(caught.value)
    assert MASTER_KEY not in str(caught.value)


def test_settings_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().issuer = "https://evil.example"  # type: ignore[misc]


def test_every_setting_has_a_meaning_a_default_and_its_unit_in_its_name() -> None:
    rows = describe()
    assert [row[0] for row in rows] == [PREFIX + field.name.upper() for field in dataclasses.fields(Settings)]
    for variable, kind, _, meaning in rows:
        assert meaning, variable
        assert kind in ("0 or 1", "integer", "text", "comma list", "path")
    counts = {"IDENTITY_WORKERS", "IDENTITY_THREADS", "IDENTITY_HASH_CONCURRENCY", "IDENTITY_PASSWORD_MIN_LENGTH"}
    units = ("_SECONDS", "_DAYS", "_BITS", "_KIB", "_COST", "_STEPS", "_PER_MINUTE")
    assert [v for v, kind, _, _ in rows if kind == "integer" and v not in counts and not v.endswith(units)] == []


def test_the_described_defaults_are_the_defaults() -> None:
    described = {variable: default for variable, _, default, _ in describe() if default}
    assert Settings.from_env(described) == Settings()


def test_the_defaults_of_the_contract() -> None:
    rows = {variable: default for variable, _, default, _ in describe()}
    assert rows["IDENTITY_DATABASE_URL"] == "sqlite:///var/identity.db"
    assert rows["IDENTITY_BIND"] == "127.0.0.1:8000"
    assert rows["IDENTITY_MAIL_URL"] == "file:var/mail"
    limits = [
        rows[f"IDENTITY_LIMIT_{name}"] for name in ("AUTH", "APPLICATION", "STANDARD", "AI_ASSISTED", "BULK_UPLOAD")
    ]
    assert limits == ["10/minute", "600/minute", "120/minute", "20/minute", "5/minute"]
