"""A harbour: a box with registries of several kinds and the clients people use, all as in real life.

Registries without TLS listen on 127.0.0.1; those with TLS on an address of the loopback that is not 127/8 and has a
name, so that no client takes it for one that may be insecure. Their CA is in /etc/docker/certs.d of the box alone.
"""

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .box import Box
from .engine import WHERRY, Result
from .images import digest
from .registry import HTPASSWD, PASSWORD, USER

NAME, ADDRESS = "registry.test", "10.11.12.13"
SECRET = "secret"  # repositories of ours that USER may pull from and not push to
RULES = [
    {"users": [USER], "repositories": ["team/*"], "actions": ["*"]},
    {"users": [USER], "repositories": [f"{SECRET}/*"], "actions": ["pull"]},
]
START = 30.0  # s a registry may take until it listens
ORAS = Path(__file__).with_name("oras_command.py")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What a registry is: whose program, whether it wants a password, whether it speaks TLS."""

    name: str
    port: int
    debian: bool = False
    auth: bool = False
    tls: bool = False
    tokens: bool = True  # ours only: Bearer, or Basic alone
    mutual: bool = False  # ours only: clients need a certificate, too

    @property
    def address(self) -> str:
        """As in a reference."""
        return f"{NAME if self.tls else '127.0.0.1'}:{self.port}"

    @property
    def listens(self) -> str:
        return f"{ADDRESS if self.tls else '127.0.0.1'}:{self.port}"


ENGINE = Kind(name="engine", port=5010)
OURS = (
    Kind(name="plain", port=5011),
    Kind(name="tokens", port=5012, auth=True),
    Kind(name="tls", port=5013, auth=True, tls=True),
    Kind(name="basic", port=5014, auth=True, tokens=False),
    ENGINE,
)
MUTUAL = Kind(name="mutual", port=5015, tls=True, mutual=True)
DEBIAN = (
    Kind(name="debian", port=5021, debian=True),
    Kind(name="debian-htpasswd", port=5022, debian=True, auth=True),
    Kind(name="debian-tls", port=5023, debian=True, auth=True, tls=True),
)


class Client:
    """A program of the box. Its users' files (HOME, passwords, certificates, caches) are in the box, too."""

    def __init__(self, harbour: "Harbour", *argv: str, env: Mapping[str, str] | None = None) -> None:
        self._harbour, self._argv, self._env = harbour, argv, env or {}

    def __call__(self, *args: str, check: bool = True, input: str | None = None, timeout: float = 60) -> Result:
        argv = [*self._argv, *args]
        done = subprocess.run(
            self._harbour.box.command(argv),
            **({"stdin": subprocess.DEVNULL} if input is None else {"input": input.encode()}),  # type: ignore[arg-type]
            capture_output=True,
            cwd=self._harbour.home,
            env={**os.environ, **self._harbour.env, **self._env},
            timeout=timeout,
            check=False,
        )
        result = Result(code=done.returncode, out=done.stdout.decode(errors="replace"), err=done.stderr.decode())
        assert not check or not result.code, f"{' '.join(argv)}: exit {result.code}\n{result.out}{result.err}"
        return result

    def refused(self, *args: str, input: str | None = None) -> str:
        """What it says when it fails, as it must."""
        done = self(*args, check=False, input=input)
        assert done.code, f"{' '.join([*self._argv, *args])} worked:\n{done.out}{done.err}"
        return done.err + done.out

    def json(self, *args: str) -> Any:
        return json.loads(self(*args).out)


class Harbour:
    """`home` is everybody's home; an engine is to listen on `socket` and to be configured by the file `config`."""

    def __init__(self, box: Box, root: Path) -> None:
        self.box, self.root, self.home = box, root, root / "home"
        self.socket = root / "docker.sock"
        self.config = root / "daemon.json"
        self.config.write_text(json.dumps({"registry": {"listen": [ENGINE.listens]}}))
        self.home.mkdir()
        (self.home / "auth.json").write_text("{}")  # podman and buildah want it to be there
        self.env = {
            "HOME": str(self.home),
            "DOCKER_CONFIG": str(self.home / "docker"),
            "DOCKER_HOST": f"unix://{self.socket}",
            "WHERRY_HOST": f"unix://{self.socket}",
            "DOCKER_CLI_HINTS": "false",
            "REGISTRY_AUTH_FILE": str(self.home / "auth.json"),
            "XDG_RUNTIME_DIR": str(self.home),
            "no_proxy": "*",
        }
        stores = ["--storage-driver", "vfs", "--root", str(root / "pod"), "--runroot", str(root / "pod.run")]
        self.docker = Client(self, "docker")
        self.wherry = Client(self, str(WHERRY))
        self.skopeo = Client(self, "skopeo", "--insecure-policy")
        self.podman = Client(self, "podman", *stores, "--tmpdir", str(root / "pod.tmp"), "--events-backend", "none")
        self.buildah = Client(self, "buildah", *stores)
        self.oras = Client(self, sys.executable, str(ORAS))
        self.authority = root / "ca.pem"
        self._own_files()
        self._make_certificates()

    # -- what the box needs --------------------------------------------------------------------------------------------

    def _own_files(self) -> None:
        """/etc, /run and /var/lib of the box are its own from here on: changes stay in the box, and go with it."""
        upper = self.root / "upper"
        upper.mkdir()
        self.box.run("mount", "-t", "tmpfs", "tmpfs", str(upper))
        for folder in ("/etc", "/var/lib"):
            parts = [f"{upper}/{kind}{folder.replace('/', '-')}" for kind in ("up", "work")]
            self.box.run("mkdir", *parts)
            self.box.run(
                *("mount", "-t", "overlay", "overlay", folder),
                *("-o", f"lowerdir={folder},upperdir={parts[0]},workdir={parts[1]}"),
            )
        self.box.run("mount", "-t", "tmpfs", "tmpfs", "/run")
        self.box.run("ln", "-s", str(self.socket), "/run/docker.sock")  # where podman looks for an engine
        self.box.run("ip", "addr", "add", f"{ADDRESS}/32", "dev", "lo")
        self.box.run("sh", "-c", f"echo '{ADDRESS} {NAME}' >>/etc/hosts")

    def _make_certificates(self) -> None:
        def openssl(*words: str) -> None:
            subprocess.run(["openssl", *words], cwd=self.root, check=True, capture_output=True)

        curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
        openssl("req", "-x509", *curve, "-days", "2", "-subj", "/CN=ca", "-keyout", "ca.key", "-out", "ca.pem")
        (self.root / "ext").write_text(f"subjectAltName=DNS:{NAME}\n")
        for prefix in ("", "client-"):
            openssl("req", *curve, "-subj", f"/CN={NAME}", "-keyout", f"{prefix}key.pem", "-out", "request.pem")
            openssl(
                *("x509", "-req", "-in", "request.pem", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"),
                *("-days", "2", "-extfile", "ext", "-out", f"{prefix}cert.pem"),
            )
        (self.root / "htpasswd").write_text(HTPASSWD)

    def trust(self, kind: Kind) -> None:
        """Give every client of the box the registry's CA, and the certificate that it may want to see."""
        folder = f"/etc/docker/certs.d/{kind.address}"
        self.box.run("mkdir", "-p", folder)
        self.box.run("cp", str(self.root / "ca.pem"), f"{folder}/ca.crt")
        if kind.mutual:
            self.box.run("cp", str(self.root / "client-cert.pem"), f"{folder}/client.cert")
            self.box.run("cp", str(self.root / "client-key.pem"), f"{folder}/client.key")

    def distrust(self, kind: Kind) -> None:
        self.box.run("rm", "-r", f"/etc/docker/certs.d/{kind.address}")

    # -- registries ----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def serving(self, *kinds: Kind) -> Iterator[None]:
        """Started together, for most of the time it takes is waiting."""
        started = {}
        try:
            for kind in kinds:
                home = self.root / kind.name
                home.mkdir()
                if kind.tls:
                    self.trust(kind)
                argv = self._debian(kind, home) if kind.debian else self._ours(kind, home)
                quiet = {"OTEL_TRACES_EXPORTER": "none"}
                started[kind] = self.box.spawn(argv, log=home / "log", env=quiet, net_only=True)
            for kind, process in started.items():
                self._wait(kind, process)
            yield
        finally:
            for process in started.values():
                process.terminate()
            for process in started.values():
                process.wait(30)

    def _wait(self, kind: Kind, process: "subprocess.Popen[bytes]") -> None:
        log, until = self.root / kind.name / "log", time.monotonic() + START
        while not re.search(rf"(listens|listening) on .*{re.escape(kind.listens)}", log.read_text()):
            if process.poll() is not None or time.monotonic() > until:
                raise AssertionError(f"{kind.name} did not start:\n{log.read_text()}")
            time.sleep(0.02)

    def _ours(self, kind: Kind, home: Path) -> Sequence[str]:
        config: dict[str, Any] = {"root": str(home / "data"), "listen": [kind.listens]}
        if kind.auth:
            config["auth"] = {"htpasswd": str(self.root / "htpasswd"), "tokens": kind.tokens, "rules": RULES}
        if kind.tls:
            config["tls"] = {"cert": str(self.root / "cert.pem"), "key": str(self.root / "key.pem")}
            config["tls"] |= {"client-ca": str(self.root / "ca.pem")} if kind.mutual else {}
        (home / "registry.json").write_text(json.dumps(config))
        return [str(WHERRY), "registry", "serve", "--config", str(home / "registry.json")]

    def _debian(self, kind: Kind, home: Path) -> Sequence[str]:
        config: dict[str, Any] = {
            "version": 0.1,
            "log": {"level": "info", "accesslog": {"disabled": True}},
            "storage": {"filesystem": {"rootdirectory": str(home / "data")}, "delete": {"enabled": True}},
            "http": {"addr": kind.listens},
        }
        if kind.auth:
            config["auth"] = {"htpasswd": {"realm": "test", "path": str(self.root / "htpasswd")}}
        if kind.tls:
            config["http"]["tls"] = {
                "certificate": str(self.root / "cert.pem"),
                "key": str(self.root / "key.pem"),
            }
        (home / "config.yml").write_text(json.dumps(config))  # which is YAML, too
        return ["docker-registry", "serve", str(home / "config.yml")]

    def faults(self, *more: Path) -> list[str]:
        """What registries of ours, and those who wrote `more`, logged as errors: no client's doing may be one."""
        logs = [self.root / kind.name / "log" for kind in (*OURS, MUTUAL) if kind is not ENGINE]
        lines = [line for log in (*logs, *more) for line in log.read_text(errors="replace").splitlines()]
        return [line for line in lines if "level=ERROR" in line or line.startswith("Traceback")]

    # -- asking --------------------------------------------------------------------------------------------------------

    def raw(self, reference: str) -> bytes:
        """The manifest or index behind a reference, as skopeo gets it."""
        return self.skopeo("inspect", "--raw", *self.flags(reference), f"docker://{reference}").out.encode()

    def flags(self, reference: str, prefix: str = "") -> list[str]:
        """What skopeo and its like want to be told of the registry that a reference names."""
        kind = next(each for each in (*OURS, MUTUAL, *DEBIAN) if reference.startswith(f"{each.address}/"))
        credentials = [f"--{prefix}creds", f"{USER}:{PASSWORD}"] if kind.auth else []
        return [*credentials, *([] if kind.tls else [f"--{prefix}tls-verify=false"])]

    def copy(self, source: str, target: str, *options: str) -> None:
        """`skopeo copy` between references, or from one of skopeo's other places (`oci:…`)."""
        read = [] if source.startswith(("oci:", "docker-archive:", "dir:")) else self.flags(source, "src-")
        self.skopeo(
            *("copy", "--quiet", *options, *read, *self.flags(target, "dest-")),
            *(f"docker://{source}" if read else source, f"docker://{target}"),
        )

    def tree(self, reference: str) -> dict[str, Any]:
        """Every digest that hangs on a reference: of the top, and what it names, down to the layers."""
        raw = self.raw(reference)
        document = json.loads(raw)
        repository = re.sub(r"(@sha256:[0-9a-f]+|:[^:/]+)$", "", reference)
        below = {each["digest"]: self.tree(f"{repository}@{each['digest']}") for each in document.get("manifests", [])}
        blobs = [each["digest"] for each in [document.get("config"), *document.get("layers", [])] if each]
        return {"digest": digest(raw), "type": document.get("mediaType"), "manifests": below, "blobs": blobs}
