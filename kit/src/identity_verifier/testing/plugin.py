"""Fixtures for pytest: `pytest_plugins = ["identity_verifier.testing.plugin"]` in the root `conftest.py`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from identity_verifier.testing import Issuer
from identity_verifier.verifier import Verifier


@pytest.fixture
def issuer() -> Issuer:
    """A fresh issuer in memory."""
    return Issuer()


@pytest.fixture
def verifier(issuer: Issuer) -> Iterator[Verifier]:
    """A verifier of its tokens, with a client to ask as."""
    made = issuer.verifier(client=issuer.client)
    yield made
    made.close()
