"""PyPI's `oras` client as a command: run by path. Every argument is a step; what each finds is printed as a JSON list.

push REFERENCE FILE · attach REFERENCE FILE (to what REFERENCE names, under the tag REFERENCE-attached) ·
pull REFERENCE FOLDER · tags REPOSITORY · delete REFERENCE · referrers REFERENCE

The client keeps to the first token it gets, whatever that is for; `--basic` sends the password with every request.
"""

import argparse
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from oras.client import OrasClient
from oras.oci import Subject


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--plain", action="store_true", help="by http")
    parser.add_argument("--ca", default=True)
    parser.add_argument("--user", help="NAME:PASSWORD")
    parser.add_argument("--basic", action="store_true")
    parser.add_argument("steps", nargs="+", metavar="VERB REFERENCE [PATH]")
    given = parser.parse_args()

    def connect() -> OrasClient:
        backend = "basic" if given.basic else "token"
        client = OrasClient(insecure=given.plain, tls_verify=given.ca, auth_backend=backend)
        if given.user:
            client.auth.set_basic_auth(*given.user.split(":"))
        return client

    found = []
    for step in given.steps:
        verb, *words = step.split()
        found.append(VERBS[verb](connect, *words))
    print(json.dumps(found))


Connect = Callable[[], OrasClient]


def look(client: OrasClient, path: str) -> Any:
    return client.do_request(f"{client.prefix}://{path}", headers={"Accept": "*/*"})


def subject_of(connect: Connect, reference: str) -> Subject:
    client = connect()
    answer = look(client, client.get_container(reference).manifest_url())
    digest = "sha256:" + hashlib.sha256(answer.content).hexdigest()
    return Subject(answer.headers["Content-Type"], digest, len(answer.content))


def push(connect: Connect, reference: str, path: str, subject: Subject | None = None) -> dict[str, str]:
    os.chdir(Path(path).parent)
    answer = connect().push(target=reference, files=[f"{Path(path).name}:text/plain"], subject=subject, quiet=True)
    return dict(answer.headers)


def attach(connect: Connect, reference: str, path: str) -> dict[str, str]:
    return push(connect, f"{reference}-attached", path, subject_of(connect, reference))


def pull(connect: Connect, reference: str, path: str) -> list[str]:
    return connect().pull(target=reference, outdir=path)


def tags(connect: Connect, reference: str) -> list[str]:
    return connect().get_tags(reference)


def delete(connect: Connect, reference: str) -> list[str]:
    repository, _, tag = reference.rpartition(":")
    return connect().delete_tags(repository, tag)


def referrers(connect: Connect, reference: str) -> Any:
    client = connect()
    container = client.get_container(reference)
    digest = subject_of(connect, reference).digest
    return look(client, f"{container.registry}/v2/{container.api_prefix}/referrers/{digest}").json()["manifests"]


VERBS: Any = {"push": push, "attach": attach, "pull": pull, "tags": tags, "delete": delete, "referrers": referrers}
main()
