"""Test processes of one machine keep out of each other's way."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.world import free_port

ROOT = Path(__file__).parent.parent


def test_no_other_process_is_given_a_port_of_ours() -> None:
    asked = "from tests.world import free_port; print(*(free_port() for _ in range(300)))"
    other = subprocess.run([sys.executable, "-c", asked], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {free_port() for _ in range(300)} & {int(port) for port in other.stdout.split()}
