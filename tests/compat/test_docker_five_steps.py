"""The five steps, whole, with a real Debian image from a real registry.

Pull with progress → create → writable layer → address on the bridge, outbound traffic masqueraded → bash on a terminal.
"""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import images
from harness.debian import CACHE, debian
from harness.engine import Cli, Engine
from harness.registry import Registry

pytestmark = pytest.mark.timeout(400)
# In the files of a container that the engine itself makes; never in an image.
MADE = {"etc/hosts", "etc/hostname", "etc/resolv.conf"}


@pytest.fixture(scope="module")
def image(registry: Registry, root: Path, require: Any) -> images.Image:
    """Debian in four layers, at the mirror of Docker Hub as `debian`."""
    require("debootstrap")
    made = debian("debian:latest")
    images.oci_layout(root / "debian", [made])
    registry.push(f"oci:{root}/debian", "library/debian:latest", "--preserve-digests")
    return made


@pytest.fixture
def missing(engine: Engine, image: images.Image) -> Iterator[images.Image]:
    """The image, sure not to be there yet; gone again afterwards."""
    assert engine.api.request("GET", "/images/debian/json").status == 404
    yield image
    engine.remove_all_containers()
    engine.docker("rmi", "-f", "debian")


def test_a_stranger_types_run_and_gets_a_shell(cli: Cli, engine: Engine, missing: images.Image) -> None:
    with cli.terminal("run", "-i", "-t", "--name", "first", "debian", "/bin/bash", rows=35, cols=111) as person:
        person.expect("Unable to find image 'debian:latest' locally")
        person.expect("latest: Pulling from library/debian")
        person.expect("Digest: sha256:[0-9a-f]{64}", timeout=180)
        person.expect("Status: Downloaded newer image for debian:latest")
        person.expect(r"root@[0-9a-f]{12}:/# ", timeout=60)
        assert len(set(re.findall(r"([0-9a-f]{12}): Pull complete", person.screen))) == 4
        assert re.search(r"Downloading|Extracting", person.screen)
        person.line("cat /etc/os-release")
        person.expect("Debian GNU/Linux")
        for _ in range(50):
            if engine.is_dockerd:  # 20.10 loses the first size now and then; since API 1.42 it comes with create
                person.resize(35, 111)
            person.line("echo size=$(stty size)")
            if person.expect(r"size=(\d+) (\d+)").groups() == ("35", "111"):
                break
        else:
            raise AssertionError(person.screen)
        person.line("echo device=$(grep -m1 eth0 /proc/net/route | cut -f1) $(grep -m1 172.31 /proc/net/fib_trie)")
        person.expect(r"device=eth0 .*172\.31\.0\.\d+")
        person.line("echo written > /kept; rm /etc/debian_version; exit 5")
        assert person.wait() == 5
    shown = cli("ps", "-a", "--format", "{{.Names}} {{.Status}}").text
    assert shown.startswith("first Exited (5)")
    with cli.terminal("start", "-ai", "first") as person:
        person.line("cat /kept; ls /etc/debian_version; exit")
        person.expect("written")
        person.expect("No such file or directory")
        person.wait()
    # The image is untouched, and a second container of it starts without copying.
    assert cli("run", "--rm", "debian", "cat", "/etc/debian_version").text
    assert cli("run", "--rm", "debian", "ls", "/kept", check=False).code == 2


def test_docker_py_does_the_same(py: Any, engine: Engine, missing: images.Image) -> None:
    output = py.containers.run(
        "debian", ["/bin/bash", "-c", "echo $BASH_VERSION; cat /etc/debian_version"], remove=True
    )
    assert len(output.splitlines()) == 2
    assert py.images.get("debian").id == missing.id


def test_the_pulled_image_is_the_same_file_by_file(engine: Engine, missing: images.Image) -> None:
    engine.docker("pull", "-q", "debian", timeout=200)
    engine.docker("create", "--name", "compared", "debian")
    data = engine.inspect("compared")["GraphDriver"]["Data"]
    # What the engine made for this one container (mount points) lies between its own layer and the image's.
    own = (f"/{engine.inspect('compared')['Id']}/", "-init/")
    lower = [path for path in data["LowerDir"].split(":") if not any(part in f"{path}/" for part in own)]
    script = f"mount -t overlay -o ro,lowerdir={':'.join(lower)} overlay /mnt && exec tar --compare --xattrs "
    script += f"--xattrs-include='*' --numeric-owner -f {CACHE}/flat.tar -C /mnt"
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    # And nothing is there that should not be.
    listing = "cd /mnt && find . -mindepth 1 | sort"
    script = f"mount -t overlay -o ro,lowerdir={':'.join(lower)} overlay /mnt && {listing}"
    there = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, check=True).stdout
    wanted = subprocess.run(
        ["tar", "-tf", f"{CACHE}/flat.tar", "--quoting-style=literal"], capture_output=True, text=True, check=True
    )
    expected = sorted(name.rstrip("/") for name in wanted.stdout.splitlines() if name != "./")
    assert sorted(there.splitlines()) == expected


def test_two_containers_of_it_share_its_layers(engine: Engine, missing: images.Image) -> None:
    engine.docker("pull", "-q", "debian", timeout=200)

    def used() -> int:
        done = subprocess.run(
            ["du", "-s", "-B1", "--one-file-system", str(engine.data_root)], capture_output=True, text=True
        )
        return int(done.stdout.split()[0])

    before = used()
    for name in ("one", "two", "three"):
        engine.docker("run", "-d", "--name", name, "debian", "sleep", "600")
    assert used() - before < 10_000_000
    layers = json.loads(engine.docker("image", "inspect", "-f", "{{json .RootFS.Layers}}", "debian").out)
    assert layers == [images.digest(layer) for layer in missing.layers]
