"""Where test vectors are that are not ours to keep in the repository, if they are on this machine at all."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).parent.parent
WYCHEPROOF = {
    "json_web_signature_test.json": 401,
    "json_web_key_test.json": 26,
    "json_web_crypto_test.json": 83,
    "json_web_encryption_test.json": 139,
}
"""The files, and how many cases each holds."""


def wycheproof_folder() -> Path | None:
    """The folder with all of them: what WYCHEPROOF_DIR names, or a `vectors` in a folder near the repository; or None."""
    named = os.environ.get("WYCHEPROOF_DIR")
    places = [Path(named)] if named else sorted({*ROOT.parent.glob("*/vectors"), *ROOT.parent.parent.glob("*/vectors")})
    return next((place for place in places if all((place / name).is_file() for name in WYCHEPROOF)), None)
