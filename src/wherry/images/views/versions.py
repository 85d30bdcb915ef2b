"""Older shapes of the image documents: what clients of earlier API versions expect to find.

The views make the newest shape; here fields are taken away or put back, as Docker's version history has it.
"""

from collections.abc import Mapping

Version = tuple[int, ...]
Document = dict[str, object]

NO_NAMES = (1, 43)  # from here on an untagged image has empty lists
NO_VIRTUAL_SIZE = (1, 44)
NO_CONTAINER_CONFIG = (1, 45)
DESCRIPTOR = (1, 48)
OCI_CONFIG = (1, 50)  # from here on Config has only what an image config can have
COUNTED = (1, 51)  # from here on the list counts containers

_ZERO_TIME = "0001-01-01T00:00:00Z"

# Fields of Config that are no image's, and were shown empty.
_CONTAINER_FIELDS: Mapping[str, object] = {
    "AttachStderr": False,
    "AttachStdin": False,
    "AttachStdout": False,
    "Domainname": "",
    "Hostname": "",
    "Image": "",
    "OpenStdin": False,
    "StdinOnce": False,
    "Tty": False,
}
_EMPTY_CONFIG: Mapping[str, object] = {
    **_CONTAINER_FIELDS,
    "Cmd": None,
    "Entrypoint": None,
    "Env": None,
    "Labels": None,
    "OnBuild": None,
    "User": "",
    "Volumes": None,
    "WorkingDir": "",
}


def summary(document: Document, version: Version) -> Document:
    """An entry of the list."""
    document = usage(document, version)
    if version < COUNTED:
        document["Containers"] = -1
    return document


def usage(document: Document, version: Version) -> Document:
    """An image of `GET /system/df`, where containers have always been counted."""
    document = dict(document)
    if version < DESCRIPTOR:
        document.pop("Descriptor", None)
    if version < NO_VIRTUAL_SIZE:
        document["VirtualSize"] = document["Size"]
    if version < NO_NAMES and not document["RepoTags"] and not document["RepoDigests"]:
        document |= {"RepoTags": ["<none>:<none>"], "RepoDigests": ["<none>@<none>"]}
    return document


def inspected(document: Document, version: Version) -> Document:
    """The document of one image."""
    document = dict(document)
    if version < DESCRIPTOR:
        document.pop("Descriptor", None)
        document.pop("Manifests", None)
    if version < OCI_CONFIG and isinstance(config := document["Config"], dict):
        document["Config"] = {**_CONTAINER_FIELDS, **config}
    if version < NO_CONTAINER_CONFIG:
        document |= {"Container": "", "ContainerConfig": dict(_EMPTY_CONFIG)}
    if version < NO_VIRTUAL_SIZE:
        document["VirtualSize"] = document["Size"]
        document.setdefault("Created", _ZERO_TIME)
    return document
