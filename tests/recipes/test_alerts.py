"""The alerts of `deploy/`, tried by Prometheus itself."""

import shutil

from tests.test_deploy import ROOT, test_the_alerts_ring_as_their_trials_say

__all__ = ["test_the_alerts_ring_as_their_trials_say"]  # It is there to be run here, too.


def test_promtool_is_here() -> None:
    assert shutil.which("promtool") or (ROOT / "tests/recipes/prometheus/usr/bin/promtool").exists()
