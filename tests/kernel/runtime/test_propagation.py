"""Mounts made in a container reach the host exactly when they were asked to. In a mount namespace of the test's own."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.kernel


@pytest.mark.parametrize(("propagation", "arrives"), [("rshared", "True"), ("rslave", "False"), ("rprivate", "False")])
@pytest.mark.parametrize("name", ["crun", "runc"])
def test_mounts_of_a_container_reach_the_host_on_shared_binds_only(tmp_path, base, propagation, arrives, name):
    script = Path(__file__).with_name("propagation_script.py")
    command = ["unshare", "--mount", "--propagation", "private", sys.executable, str(script)]
    result = subprocess.run(
        [*command, str(tmp_path), str(base), propagation, name], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["mounted", arrives, "clean"]
