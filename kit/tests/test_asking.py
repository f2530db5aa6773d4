"""What only the issuer can tell: rights that have changed, tenants that did not fit, and the truth of this moment."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from identity_verifier import Caller, Refused, Verifier
from identity_verifier.testing import Issuer
from identity_verifier.transport import Response

ASKED = "/oauth/introspect"


@pytest.fixture
def alone(issuer: Issuer) -> Verifier:
    """A verifier without a client."""
    return issuer.verifier()


def refusal(verifier: Verifier, header: str, **demands: Any) -> Refused:
    with pytest.raises(Refused) as caught:
        verifier.verify(header, **demands)
    return caught.value


def test_changed_rights_are_asked_for_and_the_old_ones_are_gone(issuer: Issuer, verifier: Verifier) -> None:
    token = issuer.user_token(roles=["admin"], groups=["staff"], tenants={"acme-bank": ["owner"]})
    assert verifier.verify(token.header).roles == {"admin"}
    issuer.change_rights(token, roles=["reader"])
    issuer.tick(31)
    caller = verifier.verify(token.header)
    assert (caller.roles, caller.groups, dict(caller.tenants)) == ({"reader"}, frozenset(), {})
    assert refusal(verifier, token.header, tenant="acme-bank").status == 403
    assert refusal(verifier, token.header, role="admin").status == 403


def test_changed_scopes_of_a_machine(issuer: Issuer, verifier: Verifier) -> None:
    token = issuer.application_token(scope="read write")
    issuer.change_rights(token, scope="read")
    assert verifier.verify(token.header).scopes == {"read"}
    assert refusal(verifier, token.header, scope="write").status == 403


def test_without_a_client_changed_rights_tell_the_caller_to_refresh(issuer: Issuer, alone: Verifier) -> None:
    token = issuer.user_token(roles=["admin"])
    issuer.change_rights(token, roles=["admin"])
    refused = refusal(alone, token.header)
    assert (refused.status, refused.code) == (401, "INVALID_TOKEN")
    assert "get a new token" in refused.message
    assert alone.verify(issuer.user_token(roles=["admin"]).header)


def test_changed_rights_are_503_when_nobody_answers(issuer: Issuer, verifier: Verifier) -> None:
    token = issuer.user_token(roles=["admin"])
    issuer.change_rights(token, roles=["reader"])
    verifier.verify(issuer.user_token().header)
    issuer.down = True
    assert refusal(verifier, token.header).status == 503


def test_the_answer_about_changed_rights_serves_for_half_a_minute(issuer: Issuer, verifier: Verifier) -> None:
    token = issuer.user_token()
    issuer.change_rights(token, roles=["a"])
    for _ in range(20):
        assert verifier.verify(token.header).roles == {"a"}
    assert issuer.asked[ASKED] == 1
    issuer.change_rights(token, roles=["b"])
    issuer.tick(30)
    assert verifier.verify(token.header).roles == {"b"}


def test_two_tokens_that_begin_alike_never_share_an_answer(issuer: Issuer, verifier: Verifier) -> None:
    first = issuer.user_token(roles=["a"])
    second = issuer.sign(first.claims | {"zz": 1})
    assert first[:400] == second[:400]
    issuer.change_rights(first, roles=["a"])
    verifier.verify(first.header)
    verifier.verify(second.header)
    assert issuer.asked[ASKED] == 2


def test_fresh_asks_every_time_and_sees_what_no_list_shows_yet(issuer: Issuer, verifier: Verifier) -> None:
    token = issuer.user_token(roles=["admin"])
    verifier.verify(token.header)
    assert verifier.verify(token.header, fresh=True).fresh
    issuer.revoke(token)
    assert not verifier.verify(token.header).fresh
    assert refusal(verifier, token.header, fresh=True).code == "INVALID_TOKEN"
    assert issuer.asked[ASKED] == 2


def test_fresh_asks_nothing_about_a_forged_token(issuer: Issuer, verifier: Verifier) -> None:
    for token in issuer.bad_tokens().values():
        refusal(verifier, f"Bearer {token}", fresh=True)
    assert issuer.asked[ASKED] <= 4  # Those that are whole, and ended or odd in their status only.


def test_fresh_without_an_answer_is_503(issuer: Issuer, verifier: Verifier, alone: Verifier) -> None:
    header = issuer.user_token().header
    assert refusal(alone, header, fresh=True).status == 503
    verifier.verify(header)
    issuer.down = True
    assert refusal(verifier, header, fresh=True).status == 503
    assert verifier.verify(header)


def test_a_client_that_the_issuer_refuses_makes_503_and_not_401(issuer: Issuer) -> None:
    verifier = issuer.verifier(client=("verifier", "wrong"))
    refused = refusal(verifier, issuer.user_token().header, fresh=True)
    assert refused.status == 503
    assert "its own" in refused.reason or "own client" in refused.reason


@pytest.mark.parametrize(
    "answer",
    [
        Response(429, {}, b"{}"),
        Response(500, {}, b""),
        Response(302, {"location": "https://evil.example"}, b""),
        Response(200, {}, b"<html>"),
        Response(200, {}, b"[]"),
        Response(200, {}, b'{"active": "true"}'),
        Response(200, {}, b"{}"),
    ],
)
def test_what_is_no_answer_is_never_taken_for_one(issuer: Issuer, answer: Response) -> None:
    verifier = issuer.verifier(
        client=issuer.client, transport=lambda request: answer if ASKED in request.url else issuer(request)
    )
    assert refusal(verifier, issuer.user_token().header, fresh=True).status == 503


@pytest.mark.parametrize(
    "said",
    [b'{"active": true}', b'{"active": true, "sub": "another"}', b'{"active": true, "sub": "me", "roles": "admin"}'],
)
def test_an_answer_about_something_else_lets_nobody_in(issuer: Issuer, said: bytes) -> None:
    verifier = issuer.verifier(
        client=issuer.client,
        transport=lambda request: Response(200, {}, said) if ASKED in request.url else issuer(request),
    )
    assert refusal(verifier, issuer.user_token("me").header, fresh=True).status == 401


def test_tenants_that_did_not_fit_are_asked_for(issuer: Issuer, verifier: Verifier, alone: Verifier) -> None:
    token = issuer.user_token(tenants_omitted=True)
    issuer.rights[token.claims["status"]["status_list"]["idx"]] = {"tenants": {"acme-bank": ["owner"]}}
    assert verifier.verify(token.header, tenant="acme-bank", role="owner").tenant == "acme-bank"
    assert refusal(verifier, token.header, tenant="other").code == "FORBIDDEN"
    # Nobody is asked where no tenant is in question.
    assert alone.verify(token.header).tenants == {}
    refused = refusal(alone, token.header, tenant="acme-bank")
    assert refused.status == 403
    assert "does not name its tenants" in refused.message


def test_averify_asks_beside_the_loop(issuer: Issuer, verifier: Verifier) -> None:
    issuer.delay_seconds = 0.1
    token = issuer.user_token()
    beats = 0

    async def both() -> Caller:
        nonlocal beats

        async def heart() -> None:
            nonlocal beats
            while True:
                await asyncio.sleep(0.005)
                beats += 1

        beating = asyncio.create_task(heart())
        caller = await verifier.averify(token.header, fresh=True)
        beating.cancel()
        return caller

    assert asyncio.run(both()).fresh
    assert beats > 2


def test_both_ways_give_the_same_verdict(issuer: Issuer, verifier: Verifier) -> None:
    async def awaited(header: str) -> str:
        try:
            return (await verifier.averify(header)).subject
        except Refused as refused:
            return f"{refused.code} {refused.reason}"

    def direct(header: str) -> str:
        try:
            return verifier.verify(header).subject
        except Refused as refused:
            return f"{refused.code} {refused.reason}"

    async def all_of_them(headers: list[str]) -> list[str]:
        return [await awaited(header) for header in headers]

    changed = issuer.user_token()
    tokens = [*issuer.bad_tokens().values(), issuer.user_token(), changed]
    issuer.change_rights(changed, roles=["x"])
    headers = [f"Bearer {token}" for token in tokens]
    verifier.warm()
    assert asyncio.run(all_of_them(headers)) == [direct(header) for header in headers]
