"""Opaque secrets and passwords: one spelling each, nothing passes by a part of it, and hashing is bounded."""

from __future__ import annotations

import os
import threading
import time
import unicodedata
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import bcrypt
import pytest
from argon2 import PasswordHasher
from hypothesis import given
from hypothesis import strategies as st

from identity.ambient import SystemEntropy
from identity.core.people import accounts
from identity.core.people.accounts import User
from identity.errors import Refused
from identity.instruments.hashing import Passwords, is_password_hash, normalized
from identity.instruments.opaque import Kind, Secret, decode, encode, fingerprint, is_well_formed, matches, mint
from identity.settings import Settings
from tests.builders import PASSWORD, a_user
from tests.world import ORIGIN, Web, fast_settings

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
PAYLOAD = bytes(range(20))


@pytest.fixture(scope="module")
def passwords() -> Passwords:
    return Passwords(fast_settings())


# Opaque secrets.


@given(st.sampled_from(Kind), st.binary(min_size=20, max_size=20))
def test_what_is_encoded_decodes_to_itself(kind: Kind, payload: bytes) -> None:
    text = encode(kind, payload).reveal()
    assert decode(kind, text) == payload
    assert text.startswith(f"{kind}_")
    assert set(text.removeprefix(f"{kind}_")) <= set(ALPHABET)


@given(st.integers(1, 64).flatmap(lambda size: st.binary(min_size=size, max_size=size)))
def test_payloads_of_every_size_survive(payload: bytes) -> None:
    assert decode(Kind.REFRESH, encode(Kind.REFRESH, payload).reveal(), len(payload)) == payload


@given(st.text(max_size=60))
def test_arbitrary_text_is_no_secret(text: str) -> None:
    for kind in Kind:
        assert decode(kind, text) is None
        assert decode(kind, f"{kind}_{text}") is None


@given(st.text(ALPHABET, min_size=33, max_size=33))
def test_one_secret_has_one_spelling(body: str) -> None:
    text = f"{Kind.SESSION}_{body}"
    payload = decode(Kind.SESSION, text)
    assert payload is None or encode(Kind.SESSION, payload).reveal() == text


def test_every_prefix_of_a_secret_is_refused() -> None:
    text = encode(Kind.API_SECRET, PAYLOAD).reveal()
    assert [text[:length] for length in range(len(text)) if is_well_formed(Kind.API_SECRET, text[:length])] == []


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t + "=",
        lambda t: t + " ",
        lambda t: " " + t,
        lambda t: t + "\n",
        lambda t: t + "0",
        lambda t: t + "\0",
    ],
)
def test_nothing_may_stand_around_a_secret(change) -> None:
    assert decode(Kind.API_SECRET, change(encode(Kind.API_SECRET, PAYLOAD).reveal())) is None


def test_every_other_character_at_every_place_is_refused() -> None:
    text = encode(Kind.CLIENT_SECRET, PAYLOAD).reveal()
    for place, right in enumerate(text):
        for wrong in {right.swapcase(), "0", "z", "_", "\u0660", "\uff11"} - {right}:
            assert decode(Kind.CLIENT_SECRET, text[:place] + wrong + text[place + 1 :]) is None, place


def test_a_secret_of_one_kind_is_none_of_another() -> None:
    for one, other in pairwise(Kind):
        assert decode(other, encode(one, PAYLOAD).reveal()) is None


def test_a_number_beyond_the_payload_is_refused() -> None:
    # 62**27 is a little more than 2**160: the spellings above are nobody's, whatever their checksum.
    assert decode(Kind.SESSION, _with_checksum(f"{Kind.SESSION}_" + "z" * 27)) is None


def _with_checksum(text: str) -> str:
    from identity.instruments.opaque import _checksum

    return text + _checksum(text)


def test_secrets_are_random_and_long() -> None:
    minted = {mint(Kind.SESSION, SystemEntropy()).reveal() for _ in range(1000)}
    assert len(minted) == 1000
    assert {len(text) for text in minted} == {4 + 27 + 6}


def test_a_secret_shows_itself_to_nobody_who_did_not_ask() -> None:
    secret = encode(Kind.SESSION, PAYLOAD)
    shown = f"{secret} {secret!r} {[secret]} {secret!s}"
    assert secret.reveal() not in shown
    assert secret == Secret(secret.reveal())
    assert secret != Secret("another")
    assert secret != secret.reveal()


def test_fingerprints_depend_on_the_pepper_and_on_every_character() -> None:
    stored = fingerprint(b"pepper", "secret")
    assert matches(stored, fingerprint(b"pepper", "secret"))
    assert not matches(stored, fingerprint(b"other", "secret"))
    assert not matches(stored, fingerprint(b"pepper", "secret "))


# Passwords.


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_a_password_verifies_and_its_neighbours_do_not(password: str) -> None:
    passwords = Passwords(fast_settings())
    stored = passwords.hash(password)
    assert passwords.verify(stored, password)
    assert not passwords.verify(stored, password + "x")
    assert not passwords.verify(stored, password + " ")
    assert is_password_hash(stored)


def test_case_counts(passwords: Passwords) -> None:
    assert not passwords.verify(passwords.hash("Correct Horse"), "correct horse")


def test_a_password_is_the_same_in_every_unicode_spelling(passwords: Passwords) -> None:
    composed, decomposed = "p\u00e4ssw\u00f6rd", unicodedata.normalize("NFD", "p\u00e4ssw\u00f6rd")
    assert composed != decomposed
    assert passwords.verify(passwords.hash(decomposed), composed)
    assert passwords.verify(passwords.hash(composed), decomposed)
    assert normalized("\uff11") == "\uff11", "NFC, not NFKC: nothing is folded"


@pytest.mark.parametrize(("length", "passes"), [(1023, True), (1024, True), (1025, False)])
def test_at_most_1024_bytes_are_accepted(passwords: Passwords, length: int, passes: bool) -> None:
    password = ("a1" * 600)[:length]
    stored = passwords.hash(password)
    assert passwords.verify(stored, password) is passes


@pytest.mark.parametrize("tail", ["x", "\u2713"])
def test_the_policy_counts_bytes_too(passwords: Passwords, tail: str) -> None:
    most = 1024 - len(tail.encode())
    passwords.check_policy(("a1b" * 400)[:most] + tail)
    with pytest.raises(Refused, match="VALIDATION_ERROR") as caught:
        passwords.check_policy(("a1b" * 400)[: most + 1] + tail)
    assert caught.value.problem.message == "The password may have at most 1024 bytes"


def test_an_endless_password_does_not_stand_for_the_empty_one(passwords: Passwords) -> None:
    for stored in (passwords.hash(""), bcrypt.hashpw(b"", bcrypt.gensalt(4)).decode()):
        assert not passwords.verify(stored, "x" * 1025)


def test_nobody_and_garbage_match_nothing(passwords: Passwords) -> None:
    for stored in (None, "", "garbage", "$argon2id$v=19$broken", "$2b$04$short", "$2b$04$" + "\u2713" * 53):
        assert not passwords.verify(stored, "")
        assert not passwords.verify(stored, "x")


def test_sixty_four_emoji_are_a_password(passwords: Passwords) -> None:
    password = "\U0001f40e" * 63 + "\U0001f50b"
    assert len(password.encode()) == 256
    passwords.check_policy(password + "x")
    stored = passwords.hash(password)
    assert passwords.verify(stored, password)
    assert not passwords.verify(stored, password[:-1])


@pytest.mark.parametrize("length", [71, 72, 73, 200])
def test_bcrypt_accepts_what_the_old_system_accepted_and_the_upgrade_no_longer(
    passwords: Passwords, length: int
) -> None:
    # bcrypt reads 72 bytes: whoever typed more there must come in here too, once.
    password = "x" * length
    stored = bcrypt.hashpw(password.encode()[:72], bcrypt.gensalt(4)).decode()
    assert passwords.verify(stored, password)
    assert passwords.is_outdated(stored)
    assert not passwords.verify(passwords.hash(password), password + "y")


def test_a_long_password_costs_a_bcrypt_account_its_hash_too(passwords: Passwords) -> None:
    stored = bcrypt.hashpw(b"secret", bcrypt.gensalt(8)).decode()

    def cost(password: str) -> float:
        started = time.perf_counter()
        passwords.verify(stored, password)
        return time.perf_counter() - started

    ordinary, long = min(cost("wrong") for _ in range(3)), min(cost("x" * 100) for _ in range(3))
    assert long > ordinary / 2


@pytest.mark.parametrize("prefix", [b"2a", b"2b"])
def test_an_older_hash_signs_in_and_is_upgraded(web: Web, prefix: bytes) -> None:
    old = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4, prefix=prefix)).decode()
    assert is_password_hash(old)
    assert_upgraded(web, old)


def test_a_hash_of_cheaper_parameters_is_upgraded(web: Web) -> None:
    assert_upgraded(web, PasswordHasher(1, 16, parallelism=1).hash(PASSWORD))


def assert_upgraded(web: Web, old: str) -> None:
    ada = a_user(web.rt)
    with web.rt.unit(ORIGIN) as unit:
        accounts.set_password_hash(unit, ada.id, old)
    assert web.post("/user/token", {"email": ada.email, "password": "wrong"}).status_code == 401
    assert stored_hash(web, ada.id) == old, "only the right password upgrades"
    assert web.post("/user/token", {"email": ada.email, "password": ada.password}).status_code == 200
    upgraded = stored_hash(web, ada.id)
    assert upgraded.startswith("$argon2id$")
    assert not web.rt.passwords.is_outdated(upgraded)
    assert web.post("/user/token", {"email": ada.email, "password": ada.password}).status_code == 200
    assert stored_hash(web, ada.id) == upgraded


def stored_hash(web: Web, user_id: str) -> str:
    with web.rt.database.reading() as session:
        stored = session.get_one(User, user_id).password_hash
        assert stored is not None
        return stored


@pytest.mark.parametrize(
    ("password", "says"),
    [
        ("a1b2c3d", "The password needs at least 8 characters"),
        ("password1", "The password is on a list of common passwords"),
        ("PASSWORD1", "The password is on a list of common passwords"),
        ("iloveyou", "The password is on a list of common passwords"),
        ("aaaaaaaaaaaa", "The password is on a list of common passwords"),
        ("lovelace1", "The password resembles the account's name"),
    ],
)
def test_weak_passwords_are_refused_with_the_reason(passwords: Passwords, password: str, says: str) -> None:
    with pytest.raises(Refused) as caught:
        passwords.check_policy(password, about=("ada", "lovelace"))
    assert caught.value.problem.message == says
    assert caught.value.problem.status == 422
    assert caught.value.field == "password"


@pytest.mark.parametrize(
    "password", ["k9q2vz7x", "correct horse battery staple", "zw\u00f6lf Boxer", "lovelace loves numbers"]
)
def test_no_rule_of_composition_is_made(passwords: Passwords, password: str) -> None:
    passwords.check_policy(password, about=("ada", "lovelace"))


# How many hashes at once.


def test_a_login_that_finds_no_hashing_slot_in_time_is_told_to_come_back(web: Web) -> None:
    impatient: Settings = replace(web.rt.settings, hash_concurrency=1, hash_wait_seconds=0)
    web.rt.passwords = Passwords(impatient)
    ada = a_user(web.rt)
    # One guess is hashed, one more may be reserved meanwhile; the third has no turn.
    with web.rt.passwords.turn(), web.rt.passwords.turn():
        answer = web.post("/user/token", {"email": ada.email, "password": ada.password})
    assert (answer.status_code, answer.json["error"]) == (503, "UNAVAILABLE")
    assert int(answer.headers["Retry-After"]) >= 1
    assert web.post("/user/token", {"email": ada.email, "password": ada.password}).status_code == 200


def test_the_memory_of_hashes_is_given_back_when_none_was_made_for_a_while() -> None:
    passwords = Passwords(fast_settings(hash_concurrency=1, argon2_memory_kib=19456))

    def hash_some() -> int:
        for _ in range(3):
            with passwords.turn():
                passwords.hash("correct horse")
        return _resident_megabytes()

    before = _resident_megabytes()
    assert hash_some() > before + 15
    passwords.rest()
    assert _resident_megabytes() > before + 15
    passwords.rest()
    # Behind what was asked of the same thread.
    passwords._compute(int)
    assert _resident_megabytes() < before + 5
    assert hash_some() > before + 15


def _resident_megabytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") // 2**20


def test_no_more_hash_at_once_than_there_are_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    passwords = Passwords(fast_settings(hash_concurrency=2))
    inside, most = 0, 0
    lock = threading.Lock()

    def counted(_hasher: PasswordHasher, _password: bytes) -> str:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        time.sleep(0.01)
        with lock:
            inside -= 1
        return "a hash"

    def hash_once() -> None:
        with passwords.turn():
            passwords.hash("correct horse battery staple")

    monkeypatch.setattr(PasswordHasher, "hash", counted)
    threads = [threading.Thread(target=hash_once) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 2
