"""Running `identity ...` in this process, on the database of a test."""

from __future__ import annotations

import dataclasses
import io
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from identity import cli as command_line
from identity.settings import Settings
from tests.world import environment_of


@dataclass(frozen=True)
class Ran:
    """What a command printed, and how it ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.status == 0, self.err
        return json.loads(self.out)


Run = Callable[..., Ran]


def runner(settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """What runs a command with these settings in its environment; `stdin` is what it is given to read."""
    chosen = {
        one.name: getattr(settings, one.name)
        for one in dataclasses.fields(settings)
        if getattr(settings, one.name) != one.default
    }
    for name, value in environment_of(chosen).items():
        monkeypatch.setenv(name, value)

    def call(*arguments: str, stdin: str = "") -> Ran:
        monkeypatch.setattr(sys, "argv", ["identity", *arguments])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        capsys.readouterr()
        status = 0
        try:
            command_line.main()
        except SystemExit as exc:
            status = int(exc.code or 0)
        printed = capsys.readouterr()
        return Ran(status, printed.out, printed.err)

    return call
