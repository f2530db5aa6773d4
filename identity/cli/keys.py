"""`identity keys`: the keys that sign tokens, and the master keys that everything is sealed under."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, BinaryIO

import click

from identity.cli.frame import Opened, cli, command, lists


@cli.group("keys")
def keys() -> None:
    """See, rotate, withdraw and import signing keys."""


@lists(keys, "list", "keys")
def list_keys(_opened: Opened) -> tuple[tuple[str, ...], Mapping[str, Any]]:
    """List signing keys, oldest first: next, active or retired."""
    return ("signing-keys",), {}


@command(keys, "rotate")
def rotate(opened: Opened) -> Any:
    """Have the next key sign as soon as verifiers can have seen it; the one before stays published until its last token is dead."""
    return opened.ask("POST", "signing-keys", "rotate")


@command(keys, "revoke", asks="Withdraw the key {kid}? Every token that it signed is refused at once.")
@click.argument("kid")
def revoke(opened: Opened, kid: str) -> Any:
    """Withdraw a key at once: every token that it signed is refused. For a key that may be stolen."""
    opened.ask("DELETE", "signing-key", kid)
    return {"kid": kid, "revoked": True}


@command(keys, "import", is_local=True)
@click.argument("file", type=click.File("rb"))
def import_key(opened: Opened, file: BinaryIO) -> Any:
    """Take the private key in FILE (PEM, unencrypted; `-` is standard input) as the one that signs next; `keys rotate` starts it.

    It is an RSA key, or a P-256 key where IDENTITY_SIGNING_ALG is ES256.
    """
    from identity import documents
    from identity.core.admin import keys

    return documents.signing_key(keys.import_key(opened.rt, opened.by, file.read(65_536)))


@command(keys, "reseal", is_local=True)
def reseal(opened: Opened) -> Any:
    """Seal everything anew under the newest master key; after that the older ones can go from IDENTITY_MASTER_KEYS."""
    from identity.core.admin import keys

    return {"resealed": keys.reseal(opened.rt, opened.by)}
