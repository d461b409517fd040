"""The three sources end to end, as `make demo-sources` shows them, on the tiny guest."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.vm

DEMO = Path(__file__).parents[2] / "scripts" / "demo_sources.py"


def test_from_an_empty_installation_to_a_vm_in_another_one(tiny):
    argv = [sys.executable, str(DEMO), "--tiny"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "NOT" not in done.stdout
    assert "moves only what differs" in done.stdout
