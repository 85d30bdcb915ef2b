"""ps: summaries of containers, newest first, through Docker's filters (ContainerSummary, API 1.51)."""

import time
from collections.abc import Callable, Iterable, Sequence

import msgspec

from wherry.aio import settle
from wherry.containers.attached import linking
from wherry.containers.deps import Deps
from wherry.containers.record import Container, Status
from wherry.containers.views import shapes
from wherry.containers.views.shapes import Document
from wherry.errors import InvalidParameter, NotFound
from wherry.filters import NONE, Filters

FILTERS = (
    "ancestor",
    "before",
    "exited",
    "expose",
    "health",
    "id",
    "is-task",
    "isolation",
    "label",
    "name",
    "network",
    "publish",
    "since",
    "status",
    "volume",
)
_STATUSES = frozenset(str(status) for status in Status)
_HEALTH = frozenset({"none", "starting", "healthy", "unhealthy"})

Test = Callable[[Container], bool]


async def list_containers(
    deps: Deps, *, all: bool = False, limit: int = 0, size: bool = False, filters: Filters = NONE
) -> list[Document]:
    """Running containers, or with `all`, a `limit` or a status filter the others too.

    Raises InvalidParameter for a filter that makes no sense, NotFound for one that names a missing container.
    """
    everything = all or limit > 0 or "status" in filters
    tests = _tests(deps, filters)
    now = time.time_ns()
    linked = {
        container_id: [f"/{user.name}/{alias}" for user, alias in users]
        for container_id, users in linking(deps.store).items()
    }
    images: dict[str, set[str]] = {}  # reference -> image IDs: 500 containers have few images
    found: list[Document] = []
    for container in reversed(deps.store.all()):
        if not container.complete or not (everything or _counts_as_running(container)):
            continue
        if _passes(tests, container):
            document = summary(deps, container, now, images)
            document["Names"] = [f"/{container.name}", *linked.get(container.id, ())]
            if size:
                document.update(await measure(deps, container))
            found.append(document)
            if len(found) == limit:
                break
    return found


def _passes(tests: Iterable[Test], container: Container) -> bool:
    return all(test(container) for test in tests)


def _counts_as_running(container: Container) -> bool:
    return container.running or container.state.status is Status.RESTARTING


def summary(deps: Deps, container: Container, now: int, images: dict[str, set[str]]) -> Document:
    host = container.host_config
    brief: Document = {"NetworkMode": shapes.network_mode(container)}
    if host.annotations:
        brief["Annotations"] = host.annotations
    return {
        "Id": container.id,
        "Names": ["/" + container.name],
        "Image": _image_name(deps, container, images),
        "ImageID": container.image_id,
        **image_manifest(deps, container),
        "Command": _command(container),
        "Created": container.created // 10**9,
        "Ports": shapes.port_list(container),
        "Labels": container.config.labels or {},
        "State": str(container.state.status),
        "Status": shapes.human_status(container, now),
        "HostConfig": brief,
        "NetworkSettings": {"Networks": shapes.networks(container)},
        "Mounts": shapes.mounts(container),
    }


def _command(container: Container) -> str:
    """Docker's rendering: an argument with a space in it stands in single quotes."""
    return " ".join([container.path, *(f"'{arg}'" if " " in arg else arg for arg in container.args)])


def _image_name(deps: Deps, container: Container, images: dict[str, set[str]]) -> str:
    """As it was typed, unless that name is gone or has no platform any more that is this image."""
    name = container.image
    if name not in images:
        try:
            images[name] = {image.id for image in deps.images.store.platforms(name)}
        except (NotFound, InvalidParameter):
            images[name] = set()
    return name if container.image_id in images[name] else container.image_id


def image_manifest(deps: Deps, container: Container) -> Document:
    """ImageManifestDescriptor, the manifest of the container's platform; nothing once the image is gone."""
    image = deps.images.store.find(container.image_id)
    if image is None or not image.manifests:
        return {}
    descriptor = msgspec.structs.replace(image.manifest, platform=image.config.platform)
    return {"ImageManifestDescriptor": msgspec.to_builtins(descriptor)}


async def measure(deps: Deps, container: Container) -> Document:
    """SizeRw, what the container wrote; SizeRootFs, that and its image."""
    try:
        written = (await settle(deps.snapshots.usage, container.id)).bytes
    except NotFound:  # removed meanwhile
        written = 0
    try:
        image = deps.images.store.get(container.image_id).size
    except NotFound:
        image = 0
    return {"SizeRw": written, "SizeRootFs": image + written}


def _tests(deps: Deps, filters: Filters) -> list[Test]:
    """Every filter that was given, as a predicate; raises for values that make no sense."""
    filters.check(FILTERS)
    tests: list[Test] = []
    if "is-task" in filters and filters.boolean("is-task", default=False):
        tests.append(lambda container: False)  # there are no services, so nothing is a task
    if statuses := filters.get("status"):
        if bad := next((value for value in statuses if value not in _STATUSES), None):
            raise InvalidParameter(f"invalid filter 'status={bad}'")
        tests.append(lambda container: filters.exact("status", container.state.status))
    if "health" in filters:
        tests.append(_health(filters))
    if "exited" in filters:
        tests.append(_exited(filters))
    if "label" in filters:
        tests.append(lambda container: filters.labels(container.config.labels))
    if "id" in filters:
        tests.append(lambda container: filters.pattern("id", container.id))
    if "name" in filters:
        tests.append(lambda container: filters.pattern("name", container.name, "/" + container.name))
    if "network" in filters:
        tests.append(lambda container: _on_network(container, filters.get("network")))
    if "volume" in filters:
        tests.append(lambda container: _has_volume(container, filters.get("volume")))
    if "ancestor" in filters:
        tests.append(_ancestor(deps, filters.get("ancestor")))
    tests.extend(_ports(filters))
    tests.extend(_around(deps, filters))
    return tests


def _health(filters: Filters) -> Test:
    if bad := next((value for value in filters.get("health") if value not in _HEALTH), None):
        raise InvalidParameter(f"unrecognized filter value for health: {bad}")

    def test(container: Container) -> bool:
        health = container.state.health
        return filters.exact("health", str(health.status) if health is not None else "none")

    return test


def _exited(filters: Filters) -> Test:
    codes: set[int] = set()
    for value in filters.get("exited"):
        try:
            codes.add(int(value))
        except ValueError:
            raise InvalidParameter(f"invalid filter 'exited={value}'") from None

    def test(container: Container) -> bool:
        state = container.state
        return not _counts_as_running(container) and state.started_at != 0 and state.exit_code in codes

    return test


def _on_network(container: Container, wanted: Sequence[str]) -> bool:
    for name, endpoint in shapes.networks(container).items():
        network_id = str(endpoint["NetworkID"])
        if name in wanted or (network_id and network_id.startswith(tuple(value for value in wanted if value))):
            return True
    return False


def _has_volume(container: Container, wanted: Sequence[str]) -> bool:
    return any(point.destination in wanted or (point.name or point.source) in wanted for point in container.mounts)


def _ancestor(deps: Deps, wanted: Sequence[str]) -> Test:
    """The image itself, or one whose layers begin with all of its layers."""
    stacks: list[Sequence[str]] = []
    exact: set[str] = set()
    for name in wanted:
        try:
            found = deps.images.store.platforms(name)
        except (NotFound, InvalidParameter):
            continue  # as in Docker: an image that is not there has no containers
        exact.update(image.id for image in found)
        stacks += [image.diff_ids for image in found]
    known: dict[str, bool] = {}

    def descends(image_id: str) -> bool:
        if image_id in exact:
            return True
        try:
            layers = deps.images.store.get(image_id).diff_ids
        except NotFound:
            return False
        return any(stack and list(layers[: len(stack)]) == list(stack) for stack in stacks)

    def test(container: Container) -> bool:
        if container.image_id not in known:
            known[container.image_id] = descends(container.image_id)
        return known[container.image_id]

    return test


def _ports(filters: Filters) -> list[Test]:
    """`publish` looks at the host's side, `expose` at the container's; as in Docker only while it runs."""
    tests: list[Test] = []
    if "publish" in filters:
        published = _wanted_ports(filters, "publish")
        tests.append(lambda container: not published.isdisjoint(_host_ports(container)))
    if "expose" in filters:
        exposed = _wanted_ports(filters, "expose")
        tests.append(lambda container: not exposed.isdisjoint(shapes.port_map(container)))
    return tests


def _wanted_ports(filters: Filters, key: str) -> set[str]:
    found: set[str] = set()
    for value in filters.get(key):
        first, _, last = value.partition("/")[0].partition("-")
        for number in (first, last or first):
            if not number.isdecimal():
                raise InvalidParameter(
                    f'error while looking up for {key} {value}: strconv.ParseUint: parsing "{number}": invalid syntax'
                )
            if int(number) > 65535:
                raise InvalidParameter(
                    f'error while looking up for {key} {value}: strconv.ParseUint: parsing "{number}": '
                    "value out of range"
                )
        if last and int(last) < int(first):
            raise InvalidParameter(
                f"error while looking up for {key} {value}: invalid range specified for port: {value}"
            )
        found.update(shapes.expand_port(value))
    return found


def _host_ports(container: Container) -> Iterable[str]:
    return (f"{port.host_port}/{port.protocol}" for port in container.ports) if shapes.has_ports(container) else ()


def _around(deps: Deps, filters: Filters) -> list[Test]:
    """`before` and `since`: containers made before, or after, the named one."""
    tests: list[Test] = []
    if before := filters.one("before"):
        oldest = deps.store.resolve(before)
        tests.append(lambda container: container.created < oldest.created)
    if since := filters.one("since"):
        newest = deps.store.resolve(since)
        tests.append(lambda container: container.created > newest.created)
    return tests
