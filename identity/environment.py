"""From the environment to the texts of our settings: variables, files that hold one secret each, and a file of variables.

What a text means is decided in `settings`; nothing that a file holds is ever part of a fault.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

PREFIX: Final = "IDENTITY_"
ENV_FILE: Final = PREFIX + "ENV_FILE"
# What only the command line reads, to work on a service over the network.
CLIENT_NAMES: Final = frozenset({f"{PREFIX}SERVER", f"{PREFIX}API_KEY", f"{PREFIX}API_SECRET"})
_FILE: Final = "_FILE"
_MAX_BYTES: Final = 65_536
_LINE: Final = re.compile(r"(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=(.*)", re.ASCII)
# What Kubernetes writes into every container for each Service whose name begins with `identity` (service links).
_SERVICE_LINK: Final = re.compile(
    rf"{PREFIX}(?:[A-Z0-9_]+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_[A-Z0-9_]+)?"
    r"|PORT_[0-9]+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)",
    re.ASCII,
)
_SERVICE_LINK_PORT: Final = re.compile(rf"{PREFIX}(?:[A-Z0-9_]+_)?PORT", re.ASCII)


def settings_in(
    environ: Mapping[str, str], *, known: Collection[str], secret: Collection[str]
) -> tuple[dict[str, str], list[str]]:
    """The text of every setting that is given, by variable, and what is wrong with how it is given.

    `NAME_FILE` names a file that holds the value of a secret one. Variables of IDENTITY_ENV_FILE count where the environment itself says
    nothing. A name given both ways is a fault, an unknown name too.
    """
    faults: list[str] = []
    given = {name: text for name, text in environ.items() if is_setting(name, text)}
    from_file = _read_env_file(given.pop(ENV_FILE, ""), faults)
    for name, text in from_file.items():
        # The environment wins, by whichever of the two names it says it.
        if name not in given and name + _FILE not in given and name.removesuffix(_FILE) not in given:
            given[name] = text
    files = {name + _FILE: name for name in secret}
    texts: dict[str, str] = {}
    for name, text in given.items():
        if name in known:
            texts[name] = text.strip()
            if name + _FILE in given and name in secret:
                faults.append(f"{name}: is given twice, {name}{_FILE} too: keep one of them")
        elif name in files:
            if files[name] not in given:
                _read_secret(name, files[name], Path(text.strip()), texts, faults)
        else:
            faults.append(f"{name}: no such setting")
    return texts, faults


def is_setting(name: str, text: str) -> bool:
    """Whether a variable is meant for us: by its name, and neither the test suite's nor one of Kubernetes' service links."""
    if not name.startswith(PREFIX) or name.startswith(PREFIX + "TEST_") or name in CLIENT_NAMES:
        return False
    if _SERVICE_LINK.fullmatch(name):
        return False
    return not (_SERVICE_LINK_PORT.fullmatch(name) and re.match(r"(tcp|udp|sctp)://", text))


def _read_secret(variable: str, name: str, path: Path, texts: dict[str, str], faults: list[str]) -> None:
    text = _read(variable, path, faults)
    if text is None:
        return
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        faults.append(f"{variable}: {path.absolute()} is empty")
    # A list may stand one item a line, as in keys/master.key.
    texts[name] = ",".join(lines)


def _read_env_file(given: str, faults: list[str]) -> dict[str, str]:
    if not given.strip():
        return {}
    path = Path(given.strip())
    found: dict[str, str] = {}
    for number, line in enumerate((_read(ENV_FILE, path, faults) or "").splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        parsed = _LINE.fullmatch(line.strip())
        if parsed is None:
            faults.append(f"{ENV_FILE}: {path.absolute()} line {number} is not NAME=value")
        elif parsed[1] == ENV_FILE:
            faults.append(f"{ENV_FILE}: {path.absolute()} line {number} names another such file")
        elif is_setting(parsed[1], parsed[2]):
            found[parsed[1]] = _unquoted(parsed[2].strip())
    return found


def _unquoted(text: str) -> str:
    return text[1:-1] if len(text) >= 2 and text[0] == text[-1] and text[0] in "'\"" else text


def _read(variable: str, path: Path, faults: list[str]) -> str | None:
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_BYTES + 1)
    except OSError as exc:
        faults.append(f"{variable}: {path.absolute()}: {exc.strerror}")
        return None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text or len(raw) > _MAX_BYTES:
        faults.append(f"{variable}: {path.absolute()} is no text of at most {_MAX_BYTES} bytes")
        return None
    return text
