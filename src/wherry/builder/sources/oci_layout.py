"""Images in an OCI layout of the client's (`oci-layout://store@sha256:…`): documents and layers through its session.

The client resolves tags by the layout's index.json; what is asked for here is always a digest.
"""

from wherry.builder.client import Client
from wherry.builder.sources.providers import ClientStore
from wherry.errors import InvalidParameter
from wherry.reference import Reference

_PREFIX = "oci:"  # as BuildKit's clients call such a store in their session


def open_layout(client: Client, store: str, reference: Reference) -> ClientStore:
    """The content store `store`. Raises InvalidParameter for a reference without a digest."""
    if reference.digest is None:
        raise InvalidParameter(
            f'oci-layout reference "{reference}" must have a digest: name it as oci-layout://<path>@sha256:…'
        )
    return ClientStore(client, store if store.startswith(_PREFIX) else f"{_PREFIX}{store}")
