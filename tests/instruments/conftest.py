"""Vectors that are not on this machine are not collected: `tests/conftest.py` says so once, and our own corpus always runs."""

from tests.vectors import wycheproof_folder

collect_ignore = [] if wycheproof_folder() else ["test_wycheproof.py"]
