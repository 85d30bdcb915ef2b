"""The engine about itself: /_ping, /version, /info, /system/df."""

import asyncio
import os
from datetime import UTC, datetime

from aiohttp import web

from wherry.api import host
from wherry.api.call import Call
from wherry.api.images import container_ids
from wherry.api.registries import describe
from wherry.api.router import Router
from wherry.api.services import API_VERSION, MIN_API_VERSION, EngineFacts
from wherry.builder.solve.upkeep import Usage
from wherry.containers.record import Status
from wherry.containers.views import listing
from wherry.errors import InvalidParameter
from wherry.filters import NONE
from wherry.images.views import usage, versions
from wherry.images.views.listing import list_images

_NO_CACHE = {"Cache-Control": "no-cache, no-store, must-revalidate", "Pragma": "no-cache"}
_USAGE = ("container", "image", "volume", "build-cache")


def add(router: Router) -> None:
    router.add("GET", "/_ping", ping)
    router.add("HEAD", "/_ping", ping)
    router.add("GET", "/version", version)
    router.add("GET", "/info", info)
    router.add("GET", "/system/df", disk_usage)


async def ping(call: Call) -> web.StreamResponse:
    headers = {
        **call.headers,
        **_NO_CACHE,
        "Builder-Version": "2",  # BuildKit's: what older clients go by
        "Swarm": "inactive",
        "Content-Type": "text/plain; charset=utf-8",
    }
    if call.request.method == "HEAD":
        return web.Response(headers={**headers, "Content-Length": "0"})
    return web.Response(body=b"OK", headers=headers)


async def version(call: Call) -> web.StreamResponse:
    facts = call.services.facts
    details = {
        "ApiVersion": API_VERSION,
        "Arch": host.architecture(),
        "BuildTime": "",
        "Experimental": "false",
        "GitCommit": "",
        "GoVersion": "",
        "KernelVersion": host.kernel(),
        "MinAPIVersion": MIN_API_VERSION,
        "Os": "linux",
    }
    return call.reply(
        {
            "Platform": {"Name": "Wherry"},
            "Components": [{"Name": "Engine", "Version": facts.version, "Details": details}],
            "Version": facts.version,
            **{key: value for key, value in details.items() if key != "Experimental"},
        }
    )


async def info(call: Call) -> web.StreamResponse:
    services = call.services
    registries = describe(services.images.registry)
    return call.reply(
        {**_counts(call), **_machine(), **_engine(services.facts), **registries, "NFd": host.open_files()}
    )


def _counts(call: Call) -> dict[str, object]:
    states = [container.state.status for container in call.services.containers.store.all() if container.complete]
    running = sum(status in (Status.RUNNING, Status.RESTARTING) for status in states)
    paused = states.count(Status.PAUSED)
    return {
        "Containers": len(states),
        "ContainersRunning": running,
        "ContainersPaused": paused,
        "ContainersStopped": len(states) - running - paused,
        "Images": len(call.services.images.store.all()),
        "NGoroutines": len(asyncio.all_tasks()),
    }


def _machine() -> dict[str, object]:
    release = host.os_release()
    return {
        **host.limits(),
        "IPv4Forwarding": host.forwards_ipv4(),
        "SystemTime": datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "CgroupVersion": host.cgroup_version(),
        "KernelVersion": host.kernel(),
        "OperatingSystem": release.get("PRETTY_NAME", "Linux"),
        "OSVersion": release.get("VERSION_ID", ""),
        "OSType": "linux",
        "Architecture": host.machine(),
        "NCPU": len(os.sched_getaffinity(0)),
        "MemTotal": host.memory(),
    }


def _engine(facts: EngineFacts) -> dict[str, object]:
    commit = {"ID": "", "Expected": ""}
    return {
        "ID": facts.id,
        "Name": facts.name,
        "ServerVersion": facts.version,
        "Driver": facts.driver,
        "DriverStatus": [list(pair) for pair in facts.driver_status],
        "DockerRootDir": str(facts.root),
        "Plugins": {
            "Volume": ["local"],
            "Network": ["bridge", "host", "null"],
            "Authorization": None,
            "Log": ["json-file", "none"],
        },
        "Debug": facts.debug,
        "LoggingDriver": facts.log_driver,
        "CgroupDriver": facts.cgroup_driver,
        "IndexServerAddress": "https://index.docker.io/v1/",
        "GenericResources": None,
        "Labels": list(facts.labels),
        "ExperimentalBuild": False,
        "Runtimes": {name: {"path": path} for name, path in facts.runtimes.items()},
        "DefaultRuntime": facts.default_runtime,
        "Swarm": {
            "NodeID": "",
            "NodeAddr": "",
            "LocalNodeState": "inactive",
            "ControlAvailable": False,
            "Error": "",
            "RemoteManagers": None,
        },
        "LiveRestoreEnabled": facts.live_restore,
        "Isolation": "",
        "InitBinary": facts.init_binary,
        "ContainerdCommit": commit,
        "RuncCommit": commit,
        "InitCommit": commit,
        "SecurityOptions": list(facts.security_options),
        "DefaultAddressPools": [{"Base": base, "Size": size} for base, size in facts.address_pools],
        "CDISpecDirs": [],
        "Warnings": list(facts.warnings),
    }


async def disk_usage(call: Call) -> web.StreamResponse:
    asked = call.texts("type") or list(_USAGE)
    if unknown := next((kind for kind in asked if kind not in _USAGE), None):
        raise InvalidParameter(f"unknown object type: {unknown}")
    services = call.services
    found: dict[str, object] = {"LayersSize": 0}
    if "image" in asked:
        found["LayersSize"] = await usage.layers_size(services.images)
        found["ContentSize"] = await usage.content_size(services.images)  # our own: the blobs, which are on disk, too
        images = await list_images(services.images, filters=NONE, shared_size=True, users=container_ids(call))
        found["Images"] = [versions.usage(document, call.version) for document in images]
    if "container" in asked:
        containers = await listing.list_containers(services.containers, all=True, size=True)
        for container in containers:
            container.pop("ImageManifestDescriptor", None)  # as in Docker it is not told here
        found["Containers"] = containers
    if "volume" in asked:
        found["Volumes"] = await services.volumes.disk_usage()
    if "build-cache" in asked:
        found["BuildCache"] = [_build_cache(each) for each in await call.services.builder.usage()]
    return call.reply(found)


def _build_cache(each: Usage) -> dict[str, object]:
    return {
        "ID": each.id,
        "Parents": list(each.parents) or None,
        "Type": each.type,
        "Description": each.description,
        "InUse": each.in_use,
        "Shared": each.shared,
        "Size": each.size,
        "CreatedAt": _moment(each.created),
        "LastUsedAt": _moment(each.used) if each.used else None,
        "UsageCount": each.uses,
    }


def _moment(ns: int) -> str:
    return datetime.fromtimestamp(ns / 1e9, UTC).isoformat().replace("+00:00", "Z")
