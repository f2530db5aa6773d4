"""One spelling of every address, alias, name and id; what has no safe form is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from identity.canonical import (
    canonical_address,
    canonical_alias,
    canonical_id,
    canonical_identifier,
    get_address,
    get_alias,
    get_names,
    is_name,
)
from identity.errors import Refused
from tests.builders import a_user
from tests.world import Web

FULLWIDTH_AT = "\uff20"


@pytest.mark.parametrize(
    "spelling", ["ada@acme.example", "ADA@acme.example", "Ada@ACME.Example", "ada@acme.example.", "ADA@ACME.EXAMPLE."]
)
def test_every_spelling_of_an_address_is_one(spelling: str) -> None:
    # Row 31.
    assert canonical_address(spelling) == "ada@acme.example"


@pytest.mark.parametrize(
    "spelling", ["ada@b\u00fccher.example", "ada@xn--bcher-kva.example", "ADA@XN--BCHER-KVA.example"]
)
def test_an_internationalised_domain_has_its_ascii_form(spelling: str) -> None:
    assert canonical_address(spelling) == "ada@xn--bcher-kva.example"


@pytest.mark.parametrize(
    "hostile",
    [
        f"a{FULLWIDTH_AT}evil.com@x.com",  # row 32: normalised after the check, this would be mailed to evil.com
        f"a{FULLWIDTH_AT}x.com",
        "\ufb01@x.com",
        "\u017f@x.com",
        "\u212a@x.com",
        "\u0131@x.com",
        "\uff41da@x.com",
        "a\u200bda@x.com",
        "ada\u0301@x.com",
        "ada@\uff58.com",
        "ada@x\u3002com",
        "ada@x.\u212aom",
        "ada@a\u200bcme.example",
        "a\r\nBcc: x@b.co",  # row 33
        "ada@b.co\r\nBcc: x@b.co",
        "ada@b.co\n",
        "\tada@b.co",
        " ada@b.co",
        "ada@b.co ",
        '"a b"@b.co',
        '"a\\r\\nBcc: x"@b.co',
        "ada(comment)@b.co",
        "Ada <ada@b.co>",
        "ada@b.co,eve@b.co",
        "ada@b.co;eve@b.co",
        "ada@@b.co",
        "ada@b@c.co",
        "@b.co",
        "ada@",
        "ada",
        "",
        ".ada@b.co",
        "ada.@b.co",
        "a..da@b.co",
        "ada@.b.co",
        "ada@b..co",
        "ada@b.co..",
        "ada@-b.co",
        "ada@b-.co",
        "ada@b_c.co",
        "ada@b",
        "ada@[127.0.0.1]",
        "ada@b.co\0",
        "\ud800@b.co",
        "ada@\ud800.co",
        "a" * 65 + "@b.co",
        "a@" + "b" * 64 + ".co",
        "a@" + ".".join(["b" * 60] * 5) + ".co",
        "ada@" + "\u00fc" * 63 + ".example",
    ],
)
def test_what_has_no_safe_form_is_no_address(hostile: str) -> None:
    assert canonical_address(hostile) is None
    with pytest.raises(Refused) as caught:
        get_address(hostile)
    assert (caught.value.problem.status, caught.value.field) == (422, "email")


@pytest.mark.parametrize(
    "plain",
    ["a@b.co", "first.last+tag@b.co", "o'neil@b.co", "a!#$%&*/=?^_`{|}~-b@b.co", "a" * 64 + "@b.co", "root@localhost"],
)
def test_ordinary_addresses_are_kept(plain: str) -> None:
    assert canonical_address(plain) == plain


@given(st.text(max_size=80))
def test_canonical_forms_are_ascii_and_stable(text: str) -> None:
    for canonical in (canonical_address, canonical_alias, canonical_id):
        found = canonical(text)
        assert found is None or (found.isascii() and found.isprintable() and canonical(found) == found)
    assert canonical_identifier(canonical_identifier(text)) == canonical_identifier(text) or not text.isascii()


@pytest.mark.parametrize("spelling", ["ada.l", "ADA.L", " Ada.L "])
def test_every_spelling_of_an_alias_is_one(spelling: str) -> None:
    assert canonical_alias(spelling) == "ada.l"


@pytest.mark.parametrize(
    "hostile",
    [
        "",
        "ab",
        "a" * 65,
        ".ada",
        "ada-",
        "a da",
        "ada@b.co",
        "\u0430da",
        "ad\u0131",
        "ada\n\0",
        "\uff41da",
        "a/b/c",
        "a\u200bda",
    ],
)
def test_what_is_no_alias_is_refused(hostile: str) -> None:
    assert canonical_alias(hostile) is None
    with pytest.raises(Refused) as caught:
        get_alias(hostile)
    assert caught.value.field == "alias"


@pytest.mark.parametrize(("length", "fits"), [(2, False), (3, True), (64, True), (65, False)])
def test_an_alias_has_3_to_64_characters(length: int, fits: bool) -> None:
    assert (canonical_alias("a" * length) is not None) is fits


@pytest.mark.parametrize(
    ("name", "fits"),
    [
        ("a", True),
        ("users_admin", True),
        ("read:all", True),
        ("a" * 64, True),
        ("a" * 65, False),
        ("", False),
        ("A", False),
        (".a", False),
        ("a b", False),
        ("\u0430", False),
        ("a\n", False),
    ],
)
def test_names_are_plain(name: str, fits: bool) -> None:
    assert is_name(name) is fits


def test_lists_of_names_are_sets() -> None:
    assert get_names(["b", "a", "b"], field="roles") == ("a", "b")
    with pytest.raises(Refused) as caught:
        get_names(["a b"], field="roles")
    assert caught.value.field == "roles"


def test_an_id_is_lower_case() -> None:
    assert canonical_id("0191D1E0-7A5C-7000-8000-00000000000A") == "0191d1e0-7a5c-7000-8000-00000000000a"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "0191d1e07a5c70008000000000000001",
        "0191d1e07a5c-7000-8000-0000-00000001",
        "{0191d1e0-7a5c-7000-8000-000000000001}",
        "\u0660191d1e0-7a5c-7000-8000-00000000001",
        "0191d1e0-7a5c-7000-8000-00000000000g",
    ],
)
def test_other_text_is_no_id(text: str) -> None:
    assert canonical_id(text) is None


SPELLINGS = ["ada@acme.example", "ADA@ACME.EXAMPLE", "ada@acme.example.", "ada", "ADA"]


def test_every_spelling_of_an_account_shares_one_counter(web: Web) -> None:
    # Row 30.
    ada = a_user(web.rt, email="ada@acme.example", alias="ada")
    for spelling in SPELLINGS:
        assert web.post("/user/token", {"email": spelling, "password": "wrong"}).status_code == 401
    for spelling in SPELLINGS:
        assert web.post("/user/token", {"email": spelling, "password": ada.password}).status_code == 429


def test_every_spelling_of_an_unknown_account_shares_one_counter_too(web: Web) -> None:
    spellings = [
        "eve@b\u00fccher.example",
        "EVE@xn--bcher-kva.example",
        "eve@xn--bcher-kva.example.",
        "Eve@b\u00fccher.example",
        "eve@b\u00fccher.example.",
    ]
    for spelling in spellings:
        assert web.post("/user/token", {"email": spelling, "password": "wrong"}).status_code == 401
    assert web.post("/user/token", {"email": spellings[0], "password": "wrong"}).status_code == 429


def test_a_lookalike_is_another_account_or_none(web: Web) -> None:
    ada = a_user(web.rt, email="kate@acme.example", alias="kate")
    for lookalike in ("\u212aate@acme.example", "\u212aate", "k\u0430te@acme.example", "kate@acme\u3002example"):
        answer = web.post("/user/token", {"email": lookalike, "password": ada.password})
        assert (answer.status_code, answer.json["error"]) == (401, "INVALID_CREDENTIALS")
