"""The fixtures are those that the kit gives to everybody."""

from identity_verifier.testing.plugin import issuer, verifier

__all__ = ["issuer", "verifier"]
