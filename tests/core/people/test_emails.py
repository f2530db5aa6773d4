"""The addresses of a user: who has one, which counts, and what several who change them at once bring about."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from email.message import EmailMessage

import pytest

from identity.core.admin import users
from identity.core.admin.by import By
from identity.core.people import accounts, addresses
from identity.core.people.ownership import ANYONE, Owner
from identity.core.proofs import codes
from identity.core.proofs.codes import Purpose
from identity.core.signin import by_code, new_password
from identity.errors import CONFLICT, INVALID_CODE, NOT_FOUND, Refused
from identity.runtime import Runtime
from tests.builders import Person, a_user
from tests.world import ORIGIN, Web, code_in


def add(rt: Runtime, person: Person, address: str) -> str:
    with rt.unit(ORIGIN) as unit:
        return addresses.add(rt, unit, person.id, address, actor=person.id)[1]


def proven(web: Web, person: Person, address: str) -> str:
    """A verified address of the user; its id."""
    web.clock.tick(1)
    verification_id = add(web.rt, person, address)
    addresses.prove(web.rt, ORIGIN, verification_id, web.last_code())
    web.mails()
    return next(each.id for each in addresses.listing_of(web.rt, person.id) if each.address == address)


def refused(deed: Callable[[], object]) -> Refused:
    with pytest.raises(Refused) as caught:
        deed()
    return caught.value


def all_at_once(deeds: Sequence[Callable[[], object]]) -> Counter[str]:
    """How each of the deeds, started together, ends: "ok" or the code of its refusal."""
    barrier = threading.Barrier(len(deeds))

    def run(deed: Callable[[], object]) -> str:
        barrier.wait()
        try:
            deed()
        except Refused as refusal:
            return refusal.problem.code
        return "ok"

    with ThreadPoolExecutor(len(deeds)) as pool:
        return Counter(pool.map(run, deeds))


def test_adding_an_unverified_address_again_mails_a_new_code_and_adds_nothing(web: Web) -> None:
    ada = a_user(web.rt)
    old = add(web.rt, ada, "ada@other.example")
    old_code = web.last_code()
    web.clock.tick(1)
    new = add(web.rt, ada, "ADA@other.example")
    assert len(addresses.listing_of(web.rt, ada.id)) == 2
    assert refused(lambda: addresses.prove(web.rt, ORIGIN, old, old_code)).problem == INVALID_CODE
    addresses.prove(web.rt, ORIGIN, new, web.last_code())


@pytest.mark.parametrize("had", [addresses.MAX_ADDRESSES - 1, addresses.MAX_ADDRESSES])
def test_an_account_has_a_bounded_number_of_addresses(rt: Runtime, had: int) -> None:
    ada = a_user(rt)
    for number in range(had - 1):
        add(rt, ada, f"ada{number}@other.example")
    if had < addresses.MAX_ADDRESSES:
        add(rt, ada, "last@other.example")
    else:
        assert refused(lambda: add(rt, ada, "last@other.example")).problem.code == CONFLICT.code


def test_an_unverified_address_signs_nobody_in(web: Web) -> None:
    ada = a_user(web.rt)
    add(web.rt, ada, "ada@other.example")
    web.mails().clear()
    by_code.begin(web.rt, ORIGIN, "ada@other.example")
    assert web.mails() == []


def test_any_verified_address_signs_in(web: Web) -> None:
    ada = a_user(web.rt)
    proven(web, ada, "ada@other.example")
    waiting = by_code.begin(web.rt, ORIGIN, "ada@other.example")
    assert web.mails()[-1]["To"] == "ada@other.example"
    by_code.complete(web.rt, ORIGIN, waiting.verification_id, web.last_code())


def test_a_code_that_went_to_an_address_dies_when_the_address_goes(web: Web) -> None:
    ada = a_user(web.rt)
    second = proven(web, ada, "ada@other.example")
    waiting = by_code.begin(web.rt, ORIGIN, "ada@other.example")
    code = web.last_code()
    with web.rt.unit(ORIGIN) as unit:
        addresses.remove(web.rt, unit, second, actor=ada.id, of=ANYONE)
    assert (
        refused(lambda: by_code.complete(web.rt, ORIGIN, waiting.verification_id, code)).problem.code
        == INVALID_CODE.code
    )
    assert waiting.opened.bearer is not None
    answer = web.get("/session", bearer=waiting.opened.bearer.reveal())
    assert answer.status_code == 401


def test_removing_an_unverified_address_kills_its_code(web: Web) -> None:
    ada = a_user(web.rt)
    verification_id = add(web.rt, ada, "ada@other.example")
    email_id = addresses.listing_of(web.rt, ada.id)[-1].id
    unverified = next(each for each in addresses.listing_of(web.rt, ada.id) if not each.verified)
    code = web.last_code()
    assert email_id
    with web.rt.unit(ORIGIN) as unit:
        addresses.remove(web.rt, unit, unverified.id, actor=ada.id, of=ANYONE)
    assert codes.find_account(web.rt, Purpose.EMAIL, verification_id) is None
    assert refused(lambda: addresses.prove(web.rt, ORIGIN, verification_id, code)).problem == INVALID_CODE


def test_when_the_preferred_address_goes_the_oldest_verified_one_takes_its_place(web: Web) -> None:
    ada = a_user(web.rt)
    for name in ("one", "two"):
        proven(web, ada, f"{name}@other.example")
    first = addresses.listing_of(web.rt, ada.id)[0]
    with web.rt.unit(ORIGIN) as unit:
        addresses.remove(web.rt, unit, first.id, actor=ada.id, of=Owner(ada.id))
    assert [(each.address, each.preferred) for each in addresses.listing_of(web.rt, ada.id)] == [
        ("one@other.example", True),
        ("two@other.example", False),
    ]


def test_the_notice_of_a_new_address_goes_to_the_one_that_was_preferred(web: Web) -> None:
    ada = a_user(web.rt)
    verification_id = add(web.rt, ada, "ada@other.example")
    addresses.prove(web.rt, ORIGIN, verification_id, web.last_code())
    notice = web.mails()[-1]
    assert (notice["To"], "New address" in notice["Subject"]) == (ada.email, True)
    with pytest.raises(AssertionError, match="no code"):
        code_in(notice)


def test_nobody_but_its_user_may_touch_an_address(rt: Runtime) -> None:
    ada, eve = a_user(rt), a_user(rt)
    (hers,) = addresses.listing_of(rt, eve.id)
    for deed in (addresses.prefer, addresses.remove):
        with pytest.raises(Refused) as caught, rt.unit(ORIGIN) as unit:
            deed(rt, unit, hers.id, actor=ada.id, of=Owner(ada.id))
        assert caught.value.problem == NOT_FOUND


def test_of_several_users_who_prove_one_address_at_once_exactly_one_gets_it(web: Web) -> None:
    people = [a_user(web.rt) for _ in range(4)]
    claims = []
    for person in people:
        web.clock.tick(1)
        claims.append((add(web.rt, person, "shared@other.example"), web.last_code()))
    outcome = all_at_once([lambda claim=claim: addresses.prove(web.rt, ORIGIN, *claim) for claim in claims])
    assert outcome == {"ok": 1, CONFLICT.code: 3}
    owner = accounts.find_by_address(web.rt, "shared@other.example")
    assert owner is not None
    assert owner.id in {person.id for person in people}


def test_of_any_addresses_preferred_at_once_one_is(web: Web) -> None:
    ada = a_user(web.rt)
    ids = [proven(web, ada, f"{number}@other.example") for number in range(4)]

    def prefer(email_id: str) -> None:
        with web.rt.unit(ORIGIN) as unit:
            addresses.prefer(web.rt, unit, email_id, actor=ada.id, of=Owner(ada.id))

    assert all_at_once([lambda one=one: prefer(one) for one in ids]) == {"ok": 4}
    assert [each.preferred for each in addresses.listing_of(web.rt, ada.id)].count(True) == 1


def test_when_all_addresses_are_removed_at_once_one_verified_one_stays(web: Web) -> None:
    ada = a_user(web.rt)
    for number in range(3):
        proven(web, ada, f"{number}@other.example")
    ids = [each.id for each in addresses.listing_of(web.rt, ada.id)]

    def remove(email_id: str) -> None:
        with web.rt.unit(ORIGIN) as unit:
            addresses.remove(web.rt, unit, email_id, actor=ada.id, of=Owner(ada.id))

    assert all_at_once([lambda one=one: remove(one) for one in ids]) == {"ok": 3, CONFLICT.code: 1}
    (left,) = addresses.listing_of(web.rt, ada.id)
    assert left.verified
    assert left.preferred


def words_of(message: EmailMessage) -> str:
    body = message.get_body(("plain",))
    return " ".join(body.get_content().split()) if body else ""


def test_an_address_hears_what_it_loses(web: Web) -> None:
    ada = a_user(web.rt)
    other = proven(web, ada, "ada@other.example")
    with web.rt.unit(ORIGIN) as unit:
        addresses.prefer(web.rt, unit, other, actor=ada.id, of=Owner(ada.id))
    notice = web.mails()[-1]
    assert (notice["To"], "not the preferred one any more" in words_of(notice)) == (ada.email, True)
    with web.rt.unit(ORIGIN) as unit:
        addresses.remove(web.rt, unit, other, actor=ada.id, of=Owner(ada.id))
    notice = web.mails()[-1]
    assert (notice["To"], "was removed" in words_of(notice)) == ("ada@other.example", True)


def test_a_reset_code_dies_with_the_address_that_it_went_to(web: Web) -> None:
    ada = a_user(web.rt)
    lost = proven(web, ada, "ada@lost.example")
    verification_id = new_password.forgot(web.rt, ORIGIN, "ada@lost.example")
    code = code_in(web.mails()[-1])
    with web.rt.unit(ORIGIN) as unit:
        addresses.remove(web.rt, unit, lost, actor=ada.id, of=Owner(ada.id))
    assert not codes.find_account(web.rt, Purpose.RESET, verification_id)
    words = "whoever reads that mailbox now"
    refusal = refused(
        lambda: new_password.reset(web.rt, ORIGIN, verification_id=verification_id, code=code, new_password=words)
    )
    assert refusal.problem == INVALID_CODE


@pytest.mark.parametrize("address", ["aaa@other.example", "zzz@other.example"])
def test_a_proven_address_takes_the_place_of_a_preferred_one_that_must_be_proven_again(web: Web, address: str) -> None:
    ada = a_user(web.rt, email="mmm@acme.example")
    users.set_verified(web.rt, By.command_line(), ada.id, verified=False)
    proven(web, ada, address)
    held = {each.address: each.preferred for each in addresses.listing_of(web.rt, ada.id)}
    assert held == {"mmm@acme.example": False, address: True}
