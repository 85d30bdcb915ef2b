"""`wherry image bootstrap`: base images without a registry."""

import pytest

from harness.engine import Engine

pytestmark = pytest.mark.not_dockerd("has no such thing")


def test_busybox_is_made_from_the_machines_own_package(own_engine, require) -> None:
    require("busybox")
    engine: Engine = own_engine()
    engine.docker("rmi", "-f", "busybox")
    out = engine.wherry("image", "bootstrap", "busybox").out
    assert "busybox:latest" in out
    done = engine.wherry("run", "--rm", "busybox", "sh", "-c", "ls /bin/sh /etc/passwd; id -un; echo $PATH")
    assert done.lines[:3] == ["/bin/sh", "/etc/passwd", "root"]
    assert "/bin" in done.lines[3]
    engine.wherry("image", "bootstrap", "busybox")  # again: nothing breaks
    assert engine.docker("run", "--rm", "busybox", "true").code == 0


def test_an_unknown_name_is_refused(engine: Engine) -> None:
    done = engine.wherry("image", "bootstrap", "windows", check=False)
    assert done.code == 1
    assert "windows" in done.err
    assert "busybox" in done.err
    assert "debian" in done.err
