"""`identity keys`: the keys that sign tokens, and the master keys that everything is sealed under."""

from __future__ import annotations

from typing import Any, BinaryIO

import click

from identity.cli.frame import Opened, cli, command


@cli.group("keys")
def keys() -> None:
    """See, rotate, withdraw and import signing keys."""


@command(keys, "list")
def list_keys(opened: Opened) -> Any:
    """List signing keys, oldest first: next, active or retired."""
    from identity import documents

    found = [documents.signing_key(one) for one in opened.rt.ring.list()]
    return documents.page("keys", len(found), found, limit=max(1, len(found)))


@command(keys, "rotate")
def rotate(opened: Opened) -> Any:
    """Have the next key sign as soon as verifiers can have seen it; the one before stays published until its last token is dead."""
    from identity import documents
    from identity.core.admin import keys

    return documents.signing_key(keys.rotate_key(opened.rt, opened.by))


@command(keys, "revoke")
@click.argument("kid")
def revoke(opened: Opened, kid: str) -> Any:
    """Withdraw a key at once: every token that it signed is refused. For a key that may be stolen."""
    from identity.core.admin import keys

    keys.revoke_key(opened.rt, opened.by, kid)
    return {"kid": kid, "revoked": True}


@command(keys, "import")
@click.argument("file", type=click.File("rb"))
def import_key(opened: Opened, file: BinaryIO) -> Any:
    """Take the RSA key in FILE (PEM, unencrypted; `-` is standard input) as the one that signs next; `keys rotate` starts it."""
    from identity import documents
    from identity.core.admin import keys

    return documents.signing_key(keys.import_key(opened.rt, opened.by, file.read(65_536)))


@command(keys, "reseal")
def reseal(opened: Opened) -> Any:
    """Seal everything anew under the newest master key; after that the older ones can go from IDENTITY_MASTER_KEYS."""
    from identity.core.admin import keys

    return {"resealed": keys.reseal(opened.rt, opened.by)}
