"""What is let in, and as whom; what is not, and in which words."""

from __future__ import annotations

from typing import Any

import pytest

from identity_verifier import Caller, Refused, Verifier
from identity_verifier.testing import Issuer

BAD = sorted(Issuer().bad_tokens())


def refusal(verifier: Verifier, authorization: str | None, **demands: Any) -> Refused:
    with pytest.raises(Refused) as caught:
        verifier.verify(authorization, **demands)
    return caught.value


@pytest.fixture(scope="module")
def bad() -> tuple[Issuer, dict[str, str]]:
    issuer = Issuer()
    return issuer, issuer.bad_tokens()


@pytest.mark.parametrize("name", BAD)
def test_no_bad_token_is_let_in(bad: tuple[Issuer, dict[str, str]], name: str) -> None:
    issuer, tokens = bad
    refused = refusal(issuer.verifier(), f"Bearer {tokens[name]}")
    # JSON holds commas, and a header with a comma is two headers.
    assert refused.status == (400 if "," in tokens[name] else 401), name
    assert refused.code == ("TOKEN_EXPIRED" if name.startswith("expired") else refused.code)


@pytest.mark.parametrize("alg", ["RS256", "ES256"])
def test_a_user_is_told_whole(alg: str) -> None:
    issuer = Issuer(alg=alg)
    token = issuer.user_token(
        "a-person",
        roles=["auditor"],
        groups=["staff"],
        tenants={"acme-bank": ["analyst"], "b": []},
        act={"sub": "help"},
    )
    caller = issuer.verifier().verify(token.header)
    assert (caller.subject, caller.kind, caller.client, caller.is_user) == ("a-person", "user", "the-portal", True)
    assert (caller.roles, caller.groups, caller.scopes) == ({"auditor"}, {"staff"}, frozenset())
    assert dict(caller.tenants) == {"acme-bank": ("analyst",), "b": ()}
    assert caller.tenant is None
    assert caller.session == token.claims["sid"]
    assert caller.auth_time is not None
    assert caller.auth_time.timestamp() == token.claims["auth_time"]
    assert caller.expires_at.timestamp() == token.claims["exp"]
    assert (caller.amr, dict(caller.act or {}), caller.fresh) == (("pwd",), {"sub": "help"}, False)
    assert caller.claims["iss"] == issuer.url


def test_a_machine_is_told_whole(issuer: Issuer, verifier: Verifier) -> None:
    caller = verifier.verify(issuer.application_token("m", scope="read write", roles=["r"], tenant="acme-bank").header)
    assert (caller.subject, caller.kind, caller.client, caller.session) == ("m", "application", "m", "")
    assert (caller.scopes, dict(caller.tenants), caller.auth_time) == ({"read", "write"}, {"acme-bank": ("r",)}, None)


def test_blank_claims_may_be_left_out(issuer: Issuer, verifier: Verifier) -> None:
    token = issuer.user_token()
    assert not {"roles", "groups", "tenants", "scope"} & set(token.claims)
    assert verifier.verify(token.header).roles == frozenset()


def test_an_old_token_without_a_status_is_good_until_it_ends(issuer: Issuer, verifier: Verifier) -> None:
    token = issuer.user_token(status=None)
    assert verifier.verify(token.header)
    assert verifier.counters()["fetches of status lists"] == 0
    issuer.tick(3600 + 30)
    assert refusal(verifier, token.header).code == "TOKEN_EXPIRED"


def test_the_audience_may_be_one_of_a_list(issuer: Issuer, verifier: Verifier) -> None:
    assert verifier.verify(issuer.user_token(aud=["https://other.example", issuer.audience]).header)


def test_the_repr_holds_no_token_and_no_claims(issuer: Issuer, verifier: Verifier) -> None:
    token = issuer.user_token(email="a@b.example")
    shown = repr(verifier.verify(token.header))
    assert token.split(".")[2] not in shown
    assert "a@b.example" not in shown
    assert token.claims["jti"] not in shown


def test_roles_of_the_tenant_and_global_ones_count_together(issuer: Issuer, verifier: Verifier) -> None:
    header = issuer.user_token(roles=["auditor"], tenants={"acme-bank": ["analyst"], "other": ["owner"]}).header
    caller = verifier.verify(header, tenant="acme-bank", role=["auditor", "analyst"])
    assert (caller.tenant, caller.roles) == ("acme-bank", {"auditor", "analyst"})
    assert refusal(verifier, header, tenant="acme-bank", role="owner").status == 403
    assert refusal(verifier, header, role="analyst").status == 403


def test_a_foreign_tenant_is_forbidden_even_where_no_role_is_needed(issuer: Issuer, verifier: Verifier) -> None:
    header = issuer.user_token(roles=["auditor"], tenants={"acme-bank": []}).header
    assert verifier.verify(header, tenant="acme-bank")
    for foreign in ("acme", "acme-bank2", "", "ACME-BANK"):
        assert refusal(verifier, header, tenant=foreign).code == "FORBIDDEN"


def test_all_scopes_are_needed(issuer: Issuer, verifier: Verifier) -> None:
    header = issuer.application_token(scope="read write").header
    assert verifier.verify(header, scope=("read", "write"))
    refused = refusal(verifier, header, scope=["read", "admin"])
    assert (refused.status, refused.scope) == (403, ("admin", "read"))
    assert refusal(verifier, header, scope="rea").status == 403


def test_a_handler_can_ask_for_more_later(issuer: Issuer, verifier: Verifier) -> None:
    caller = verifier.verify(issuer.application_token(scope="read").header)
    caller.require(scope="read")
    with pytest.raises(Refused, match="lacks the role"):
        caller.require(role="owner")
    with pytest.raises(Refused, match="lacks the scope"):
        caller.require(scope="write")


@pytest.mark.parametrize(
    ("authorization", "code", "status"),
    [
        (None, "UNAUTHENTICATED", 401),
        ("", "UNAUTHENTICATED", 401),
        ("Basic {}", "UNAUTHENTICATED", 401),
        ("{}", "UNAUTHENTICATED", 401),
        ("Bearer", "INVALID_TOKEN", 401),
        ("Bearer ", "INVALID_TOKEN", 401),
        ("Bearer {},Bearer {}", "MALFORMED_REQUEST", 400),
        ("Bearer {} x", "INVALID_TOKEN", 401),
        ("Bearer\t{}", "UNAUTHENTICATED", 401),
    ],
)
def test_exactly_one_bearer(
    issuer: Issuer, verifier: Verifier, authorization: str | None, code: str, status: int
) -> None:
    given = authorization and authorization.replace("{}", issuer.user_token())
    refused = refusal(verifier, given)
    assert (refused.code, refused.status) == (code, status)


@pytest.mark.parametrize("spelled", ["Bearer {}", "bearer {}", "BEARER {}", "Bearer  {} "])
def test_the_scheme_is_no_matter_of_case(issuer: Issuer, verifier: Verifier, spelled: str) -> None:
    assert isinstance(verifier.verify(spelled.format(issuer.user_token())), Caller)


def test_eight_kib_is_the_end(issuer: Issuer, verifier: Verifier) -> None:
    short = issuer.user_token(note="x" * 5400)
    assert len(short) <= 8192
    assert verifier.verify(short.header)
    assert "8 KiB" in refusal(verifier, issuer.user_token(note="x" * 5500).header).reason


def test_times_have_thirty_seconds_of_leeway(issuer: Issuer, verifier: Verifier) -> None:
    now = int(issuer.now())
    assert verifier.verify(issuer.user_token(exp=now - 25).header)
    assert refusal(verifier, issuer.user_token(exp=now - 31).header).code == "TOKEN_EXPIRED"
    assert verifier.verify(issuer.user_token(nbf=now + 25).header)
    assert refusal(verifier, issuer.user_token(nbf=now + 35).header).code == "INVALID_TOKEN"


def test_a_forged_token_that_is_expired_is_not_called_expired(issuer: Issuer, verifier: Verifier) -> None:
    token = issuer.expired_token()
    head, body, signature = token.split(".")
    assert refusal(verifier, f"Bearer {head}.{body}.{signature[::-1]}").code == "INVALID_TOKEN"
    assert refusal(verifier, token.header).code == "TOKEN_EXPIRED"


@pytest.mark.parametrize(
    "options",
    [
        {"audience": ""},
        {"on_stale": "shrug"},
        {"on_stale": "introspect"},
    ],
)
def test_what_cannot_work_is_refused_at_the_start(issuer: Issuer, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="audience|on_stale"):
        issuer.verifier(**options)


@pytest.mark.parametrize(
    "url",
    [
        "auth.example",
        "ftp://auth.example",
        "http://auth.example",
        "https://",
        "https://a.example?x",
        " https://a.example",
    ],
)
def test_an_issuer_is_an_address_that_can_be_trusted(url: str) -> None:
    with pytest.raises(ValueError, match="not an issuer|plain http"):
        Verifier(url, "https://api.example")


def test_plain_http_is_for_loopback_or_for_whoever_asks_for_it() -> None:
    assert Verifier("http://127.0.0.1:8000", "a")
    assert Verifier("http://auth.cluster.local", "a", allow_http=True)


def test_issuer_and_audience_are_required() -> None:
    with pytest.raises(TypeError):
        Verifier("https://auth.example")  # type: ignore[call-arg]


def test_reasons_never_hold_the_token(issuer: Issuer, verifier: Verifier) -> None:
    for name, token in issuer.bad_tokens().items():
        refused = refusal(verifier, f"Bearer {token}")
        for part in token.split("."):
            assert len(part) < 12 or part not in f"{refused} {refused.reason} {refused!r}", name
