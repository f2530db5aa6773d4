"""The rules of key pairs that HTTP does not show; the exchanges are in the dialect's tests."""

from __future__ import annotations

import pytest
from sqlalchemy import update

from identity.core.clients import keypair_proof, keypairs
from identity.core.clients.keypairs import KeyPair, Requested
from identity.core.people import accounts
from identity.core.people.ownership import ANYONE, Owner
from identity.core.tokens import sessions
from identity.errors import CONFLICT, INVALID_CODE, INVALID_TOKEN, KEY_MISMATCH, NOT_FOUND, VALIDATION, Refused
from identity.instruments.opaque import Kind, is_well_formed
from identity.runtime import Runtime
from tests.builders import Person, a_user
from tests.world import ORIGIN, FakeClock, Mailbox, Web, code_in


def request(rt: Runtime, person: Person, **options: object) -> Requested:
    user = accounts.get(rt, person.id)
    chosen = {"name": "ci", "days": 30, "actor": person.id} | options
    with rt.unit(ORIGIN) as unit:
        return keypairs.request(rt, unit, user, **chosen)  # type: ignore[arg-type] -- as a test wants it


def confirmed(web: Web, person: Person, **options: object) -> Requested:
    made = request(web.rt, person, **options)
    keypairs.prove(web.rt, ORIGIN, made.verification_id, web.last_code())
    web.mails()  # The notice leaves now, so that the next mail is the newest.
    return made


def proven(rt: Runtime, made: Requested, *, address: str = "192.0.2.1") -> keypair_proof.KeyInfo:
    return keypair_proof.authenticate(rt, ORIGIN._replace(address=address), made.info.api_key, made.secret.reveal())


def test_both_halves_say_what_they_are_and_only_a_keyed_hash_of_the_secret_is_kept(rt: Runtime) -> None:
    made = request(rt, a_user(rt))
    assert is_well_formed(Kind.API_KEY, made.info.api_key)
    assert is_well_formed(Kind.API_SECRET, made.secret.reveal())
    with rt.database.reading() as session:
        row = session.get_one(KeyPair, made.info.id)
        assert len(row.fingerprint) == 32
        assert made.secret.reveal().encode() not in row.fingerprint
    assert made.secret.reveal() not in repr(made)


def test_a_pair_carries_the_rights_of_now(web: Web) -> None:
    ada = a_user(web.rt, roles=("analyst",))
    made = confirmed(web, ada)
    assert proven(web.rt, made).roles == ("analyst",)
    with web.rt.unit(ORIGIN) as unit:
        accounts.get_row(unit.session, ada.id).roles = ("reader",)
    assert proven(web.rt, made).roles == ("reader",)


@pytest.mark.parametrize(
    ("cidrs", "address", "passes"),
    [
        ((), "203.0.113.9", True),
        (("192.0.2.0/24",), "192.0.2.255", True),
        (("192.0.2.0/24",), "192.0.3.0", False),
        (("2001:db8::/32", "192.0.2.1"), "2001:db8::1", True),
        (("2001:db8::/32",), "192.0.2.1", False),
        (("192.0.2.0/24",), "", False),
    ],
)
def test_a_pair_works_from_its_networks_only(web: Web, cidrs: tuple[str, ...], address: str, *, passes: bool) -> None:
    made = confirmed(web, a_user(web.rt), cidrs=cidrs)
    if passes:
        assert proven(web.rt, made, address=address).id == made.info.id
    else:
        with pytest.raises(Refused) as caught:
            proven(web.rt, made, address=address)
        assert (caught.value.problem, caught.value.detail) == (KEY_MISMATCH, "foreign network")


@pytest.mark.parametrize(("count", "problem"), [(32, None), (33, VALIDATION)])
def test_a_pair_has_at_most_32_networks(rt: Runtime, count: int, problem: object) -> None:
    cidrs = tuple(f"10.{number}.0.0/16" for number in range(count))
    if problem is None:
        assert len(request(rt, a_user(rt), cidrs=cidrs).info.cidrs) == count
    else:
        with pytest.raises(Refused) as caught:
            request(rt, a_user(rt), cidrs=cidrs)
        assert (caught.value.problem.code, caught.value.field) == (VALIDATION.code, "cidrs")


def test_an_account_has_a_bounded_number_of_pairs(rt: Runtime) -> None:
    ada = a_user(rt)
    with rt.unit(ORIGIN) as unit:
        for _ in range(keypairs.MAX_PAIRS):
            keypairs.create(rt, unit, ada.id, name="x", days=1, actor=ada.id)
    with pytest.raises(Refused) as caught:
        request(rt, ada)
    assert caught.value.problem.code == CONFLICT.code


def test_a_pair_that_was_revoked_meanwhile_cannot_be_confirmed(web: Web) -> None:
    ada = a_user(web.rt)
    made = request(web.rt, ada)
    code = web.last_code()
    with web.rt.unit(ORIGIN) as unit:
        keypairs.revoke(web.rt, unit, made.info.id, actor=ada.id, of=ANYONE)
    with pytest.raises(Refused) as caught:
        keypairs.prove(web.rt, ORIGIN, made.verification_id, code)
    assert caught.value.problem.code == INVALID_CODE.code


def test_a_pair_of_a_user_without_a_proven_address_is_refused(rt: Runtime) -> None:
    with pytest.raises(Refused) as caught:
        request(rt, a_user(rt, verified=False))
    assert caught.value.problem.code == CONFLICT.code


def test_a_user_hears_of_a_new_pair(rt: Runtime, mailbox: Mailbox, web: Web) -> None:
    ada = a_user(rt)
    confirmed(web, ada, name="build server")
    notice = web.mails()[-1]
    assert (notice["To"], "New key pair" in notice["Subject"]) == (ada.email, True)
    with pytest.raises(AssertionError, match="no code"):
        code_in(notice)


def test_what_a_pair_opened_ends_with_it_and_nothing_else_does(web: Web) -> None:
    ada = a_user(web.rt)
    first, second = confirmed(web, ada), confirmed(web, ada)
    for made in (first, second):
        key = proven(web.rt, made)
        keypair_proof.trade(web.rt, ORIGIN, key, resource="https://api.example")
    with web.rt.unit(ORIGIN) as unit:
        keypairs.revoke(web.rt, unit, first.info.id, actor=ada.id, of=Owner(ada.id))
    assert len(sessions.listing_of(web.rt, ada.id)) == 1


def test_a_pair_revoked_since_it_was_proven_opens_nothing(web: Web) -> None:
    ada = a_user(web.rt)
    made = confirmed(web, ada)
    key = proven(web.rt, made)
    with web.rt.unit(ORIGIN) as unit:
        keypairs.revoke(web.rt, unit, made.info.id, actor=ada.id, of=ANYONE)
    with pytest.raises(Refused) as caught:
        keypair_proof.trade(web.rt, ORIGIN, key, resource="https://api.example")
    assert caught.value.problem == KEY_MISMATCH
    assert sessions.listing_of(web.rt, ada.id) == []


def test_the_last_use_is_noted_and_an_older_note_does_not_replace_it(web: Web) -> None:
    ada = a_user(web.rt)
    made = confirmed(web, ada)
    proven(web.rt, made)
    later = web.clock.now().replace(microsecond=0)
    with web.rt.unit(ORIGIN) as unit:
        web.clock.tick(60)
        unit.execute(update(KeyPair).values(last_used_at=web.clock.now()))
    web.rt.usage.flush(web.rt.database, web.rt.clock.now())
    (info,) = keypairs.listing_of(web.rt, ada.id)
    assert info.last_used_at == web.clock.now() > later


def test_an_administrator_may_vouch_for_a_pair_but_for_none_that_is_not_there(rt: Runtime) -> None:
    made = request(rt, a_user(rt))
    with rt.unit(ORIGIN) as unit:
        assert keypairs.mark_proven(rt, unit, made.info.id, actor="admin").verified
    for unknown in ("0192f3a0-0000-7000-8000-000000000000", "x"):
        with pytest.raises(Refused) as caught, rt.unit(ORIGIN) as unit:
            keypairs.mark_proven(rt, unit, unknown, actor="admin")
        assert caught.value.problem == NOT_FOUND


def test_the_janitor_forgets_pairs_a_month_after_their_end(rt: Runtime, clock: FakeClock) -> None:
    ada = a_user(rt)
    request(rt, ada, days=1)
    for seconds, gone in ((31 * 86_400, 0), (1, 1)):
        clock.tick(seconds)
        with rt.unit(ORIGIN) as unit:
            assert keypairs.purge(rt, unit) == gone
    assert keypairs.listing_of(rt, ada.id) == []


def test_a_traded_token_dies_when_its_user_is_disabled(web: Web) -> None:
    ada = a_user(web.rt)
    token = keypair_proof.trade(
        web.rt, ORIGIN, proven(web.rt, confirmed(web, ada)), resource="https://api.example"
    ).text
    with web.rt.unit(ORIGIN) as unit:
        accounts.get_row(unit.session, ada.id).enabled = False
    assert web.get("/session", bearer=token).json["error"] == INVALID_TOKEN.code
