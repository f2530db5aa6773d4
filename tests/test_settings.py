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
        ("database_url", "mysql://db/identity"),
        ("database_url", "identity.db"),
        ("redis_url", "http://cache"),
        ("mail_url", "imap://mail"),
        ("mail_from", "nobody"),
        ("mail_from", "identity@b\u00fccher.example"),
        ("bind", "8000"),
        ("bind", "unix:"),
        ("metrics_bind", "9000"),
        ("trusted_proxies", "10.0.0.0/33"),
        ("trusted_proxies", "proxy.example"),
        ("origins", "https://a.example/"),
        ("origins", "a.example"),
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
    ],
)
def test_a_value_that_makes_no_sense_is_named(name: str, value: str) -> None:
    faults = faults_of(**{name: value})
    assert {fault.partition(":")[0] for fault in faults} == {PREFIX + name.upper()}
    assert all(fault.partition(": ")[2] for fault in faults)


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
