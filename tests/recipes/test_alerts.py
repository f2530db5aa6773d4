"""The alerts of `deploy/`, tried by Prometheus itself."""

import shutil
import subprocess

from tests.test_deploy import DEPLOY, ROOT


def test_the_alerts_ring_as_their_trials_say() -> None:
    installed = ROOT / "tests/recipes/prometheus/usr/bin/promtool"
    program = shutil.which("promtool") or str(installed)
    command = [program, "test", "rules", str(DEPLOY / "prometheus-rules.test.yaml")]
    checked = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert checked.returncode == 0, checked.stdout + checked.stderr
