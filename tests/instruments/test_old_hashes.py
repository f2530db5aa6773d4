"""Hashes of other systems: each kind accepts its password and no other, and what is broken or too costly is refused at import."""

from __future__ import annotations

import base64
import hashlib

import bcrypt
import pytest
from argon2 import PasswordHasher
from argon2.low_level import Type

from identity.instruments.hashing import Passwords, is_password_hash
from tests.world import fast_settings

PASSWORD = "correct horse battery staple"


def b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def ab64(raw: bytes) -> str:
    return b64(raw).rstrip("=").replace("+", ".")


def hashes_of(password: str) -> dict[str, str]:
    """The password as each older system would keep it, made by other means than the code under test wherever there are any."""
    typed, salt = password.encode(), b"saltsaltsaltsalt"
    sha256 = hashlib.sha256(typed).hexdigest().encode()
    scrypt = hashlib.scrypt(typed, salt=salt, n=1024, r=8, p=1, dklen=64)
    return {
        "bcrypt": bcrypt.hashpw(typed[:72], bcrypt.gensalt(4)).decode(),
        "bcrypt, Django": "bcrypt$" + bcrypt.hashpw(typed[:72], bcrypt.gensalt(4)).decode(),
        "bcrypt_sha256, Django": "bcrypt_sha256$" + bcrypt.hashpw(sha256, bcrypt.gensalt(4)).decode(),
        "argon2id": PasswordHasher(1, 64, 1).hash(typed),
        "argon2i": PasswordHasher(1, 64, 1, type=Type.I).hash(typed),
        "argon2, Django": "argon2" + PasswordHasher(1, 64, 1).hash(typed),
        "pbkdf2_sha256, Django": f"pbkdf2_sha256$1000$seasalt${b64(hashlib.pbkdf2_hmac('sha256', typed, b'seasalt', 1000))}",
        "pbkdf2_sha1, Django": f"pbkdf2_sha1$1000$seasalt${b64(hashlib.pbkdf2_hmac('sha1', typed, b'seasalt', 1000))}",
        "pbkdf2-sha512, passlib": f"$pbkdf2-sha512$1000${ab64(salt)}${ab64(hashlib.pbkdf2_hmac('sha512', typed, salt, 1000))}",
        "pbkdf2, passlib": f"$pbkdf2$1000${ab64(salt)}${ab64(hashlib.pbkdf2_hmac('sha1', typed, salt, 1000))}",
        "pbkdf2, werkzeug": f"pbkdf2:sha256:1000$salty${hashlib.pbkdf2_hmac('sha256', typed, b'salty', 1000).hex()}",
        "scrypt, PHC": f"$scrypt$ln=10,r=8,p=1${ab64(salt)}${ab64(scrypt)}",
        "scrypt, werkzeug": f"scrypt:1024:8:1${salt.decode()}${scrypt.hex()}",
        "SSHA": "{SSHA}" + b64(hashlib.sha1(typed + b"salt").digest() + b"salt"),
        "SSHA512": "{SSHA512}" + b64(hashlib.sha512(typed + b"salt").digest() + b"salt"),
    }


@pytest.fixture(scope="module")
def passwords() -> Passwords:
    return Passwords(fast_settings())


@pytest.mark.parametrize("kind", hashes_of(PASSWORD))
def test_each_kind_accepts_its_password_and_no_other(passwords: Passwords, kind: str) -> None:
    stored = hashes_of(PASSWORD)[kind]
    assert is_password_hash(stored)
    assert passwords.verify(stored, PASSWORD)
    for wrong in ("", PASSWORD[:-1], PASSWORD + "x", PASSWORD.upper(), PASSWORD + " "):
        assert not passwords.verify(stored, wrong), wrong
    assert passwords.is_outdated(stored)


# The test vectors of the specification (Drepper, SHA-crypt): rounds, salt, password, digest.
VECTORS = """
saltstring|Hello world!|svn8UoSVapNtMuq1ukKS4tPQd8iKwSMHWjl/O817G3uBnIFNjnQJuesI68u4OTLiBFdcbYEdFCoEOfaS35inz1
rounds=10000$saltstringsaltst|Hello world!|OW1/O6BYHV6BcXZu8QVeXbDWra3Oeqh0sbHbbMCVNSnCM/UrjmM0Dp8vOuZeHBy/YTBmSK6H9qs/y3RnOaw5v.
rounds=5000$toolongsaltstrin|This is just a test|lQ8jolhgVRVhY4b5pZKaysCLi0QBxGoNeKQzQ3glMhwllF7oGDZxUhx1yxdYcz/e1JSbq3y6JMxxl8audkUEm0
"""


@pytest.mark.parametrize("vector", VECTORS.strip().splitlines())
def test_sha512_crypt_is_the_one_of_its_specification(passwords: Passwords, vector: str) -> None:
    setting, password, digest = vector.split("|")
    stored = f"$6${setting}${digest}"
    assert is_password_hash(stored)
    assert passwords.verify(stored, password)
    assert not passwords.verify(stored, password + "x")


def test_firebase_is_the_one_of_its_own_example(passwords: Passwords) -> None:
    # The example of firebase/scrypt's README, whose parameters are public.
    signer = "jxspr8Ki0RYycVU8zykbdLGjFQ3McFUH0uiiTvC8pVMXAn210wjLNmdZJzxUECKbm0QsEmYUSDzZvpjeJ9WmXA=="
    stored = (
        f"$fbscrypt$v=1,n=14,r=8,p=1,ss=Bw==,sk={signer}$42xEC+ixf3L2lw==$"
        "lSrfV15cpx95/sZS2W9c9Kp6i/LVgQNDNC/qzrCnh1SAyZvqmZqAjTdn3aoItz+VHjoZilo78198JAdRuid5lQ=="
    )
    assert is_password_hash(stored)
    assert passwords.verify(stored, "user1password")
    assert not passwords.verify(stored, "user1passwore")


@pytest.mark.parametrize(
    "stored",
    [
        "",
        "plain",
        "$2b$31$" + "a" * 53,
        "$2b$12$" + "a" * 52,
        "$argon2id$v=19$m=4194304,t=3,p=1$c2FsdHNhbHQ$aGFzaGhhc2hoYXNoaGFzaA",
        "$argon2id$v=19$m=65536,t=99,p=1$c2FsdHNhbHQ$aGFzaGhhc2hoYXNoaGFzaA",
        "$argon2id$v=19$m=65536,t=3,p=1$c2FsdHNhbHQ$",
        "$argon2id$v=19$m=65536,t=3,p=1$c2FsdHNhbHQ$!!!!!!!!!!!!!!!!!!!!",
        "$argon2id$v=19$m=65536,t=3$c2FsdHNhbHQ$aGFzaGhhc2hoYXNoaGFzaA",
        "$argon2d$v=19$m=65536,t=3,p=1$c2FsdHNhbHQ$aGFzaGhhc2hoYXNoaGFzaA",
        "pbkdf2_sha256$99999999$salt$" + b64(bytes(32)),
        "pbkdf2_sha256$0$salt$" + b64(bytes(32)),
        "pbkdf2_md5$1000$salt$" + b64(bytes(16)),
        "pbkdf2_sha256$1000$salt$AAA",
        "$scrypt$ln=24,r=8,p=1$c2FsdA$" + ab64(bytes(32)),
        "$scrypt$ln=10,r=999,p=16$c2FsdA$" + ab64(bytes(32)),
        "scrypt:1000:8:1$salt$" + "0" * 64,
        "{SSHA}" + b64(bytes(19)),
        "{SHA}" + b64(bytes(20)),
        "$6$rounds=999999999$salt$" + "a" * 86,
        "$6$salt$" + "a" * 85,
        "$1$salt$hash",
        "$5$saltstring$5B8vYYiY.CVt1RlTTf8KbXBH3hsxY/GNooZaBBGWEc8",
    ],
)
def test_what_is_broken_immoderate_or_unknown_is_refused_at_import(stored: str) -> None:
    assert not is_password_hash(stored)


def test_an_imported_hash_accepts_the_bytes_that_were_typed(passwords: Passwords) -> None:
    # Typed in a form that we would normalize: the old system hashed it as it was.
    typed = "cafe\u0301 au lait"
    for kind, stored in hashes_of(typed).items():
        assert passwords.verify(stored, typed), kind
