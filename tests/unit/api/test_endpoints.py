"""Endpoints over real rooms: what is read from a request, what is answered, in whose words."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote

import pytest
from api_world import World
from wirekit import ask, connected, get, post

from wherry.api.listeners import parse, serve
from wherry.api.routes import build
from wherry.containers.live import WaitResult
from wherry.containers.record import Status
from wherry.events import Event
from wherry.spec.engine import IPAMPool


class Daemon(World):
    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.path = root / "s"

    async def get(self, target: str) -> tuple[int, object]:
        status, _, body = await ask(self.path, get(target))
        return status, json.loads(body) if body else None

    async def post(self, target: str, document: object = None) -> tuple[int, object]:
        body = b"" if document is None else json.dumps(document).encode()
        status, _, answer = await ask(
            self.path, post(target, body, *(["Content-Type: application/json"] if body else []))
        )
        return status, json.loads(answer) if answer else None

    async def delete(self, target: str) -> tuple[int, object]:
        status, _, body = await ask(self.path, f"DELETE {target} HTTP/1.1\r\nHost: d\r\n\r\n".encode())
        return status, json.loads(body) if body else None


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[Daemon]:
    daemon = Daemon(tmp_path)
    await daemon.volumes.start()
    listening = await serve(build(daemon.services), [parse(f"unix://{daemon.path}")])
    yield daemon
    await listening.stop(grace=2)
    await daemon.containers.background.close()


def filters(value: object) -> str:
    return quote(json.dumps(value))


# ping, version, info


async def test_ping_by_head_and_get(daemon: Daemon):
    async with connected(daemon.path) as client:
        await client.send(b"HEAD /_ping HTTP/1.1\r\nHost: d\r\n\r\n")
        status, headers = await client.head()
        assert status == 200
        assert headers["api-version"] == "1.51"
        assert headers["ostype"] == "linux"
        assert headers["content-length"] == "0"
        assert headers["cache-control"] == "no-cache, no-store, must-revalidate"
        assert headers["swarm"] == "inactive"
        await client.send(get("/v1.30/_ping"))
        assert (await client.answer())[2] == b"OK"


async def test_version_says_it_flat_and_by_component(daemon: Daemon):
    _, found = await daemon.get("/version")
    assert found["ApiVersion"] == "1.51"
    assert found["MinAPIVersion"] == "1.24"
    assert found["Version"] == "9.9"
    assert found["Platform"] == {"Name": "Wherry"}
    engine = found["Components"][0]
    assert engine["Name"] == "Engine"
    assert engine["Details"]["ApiVersion"] == "1.51"
    assert engine["Details"]["Os"] == found["Os"] == "linux"


async def test_info_counts_containers_and_tells_of_registries(daemon: Daemon):
    for name, status in (("a", Status.RUNNING), ("b", Status.PAUSED), ("c", Status.EXITED), ("d", Status.CREATED)):
        await daemon.add(name, status=status)
    _, found = await daemon.get("/info")
    counts = [found[f"Containers{kind}"] for kind in ("", "Running", "Paused", "Stopped")]
    assert counts == [4, 1, 1, 2]
    assert found["RegistryConfig"]["InsecureRegistryCIDRs"] == ["::1/128", "127.0.0.0/8", "10.0.0.0/8"]
    assert found["RegistryConfig"]["IndexConfigs"]["registry.test:5000"]["Secure"] is False
    assert found["RegistryConfig"]["IndexConfigs"]["docker.io"]["Mirrors"] == ["https://mirror.test/"]
    assert found["Runtimes"] == {"crun": {"path": "/usr/bin/crun"}}
    assert found["Swarm"]["LocalNodeState"] == "inactive"
    assert found["NCPU"] > 0
    assert found["MemTotal"] > 1 << 20
    assert found["CgroupVersion"] in ("1", "2")


async def test_disk_usage_is_computed_for_the_asked_kinds_only(daemon: Daemon):
    _, found = await daemon.get("/system/df?type=volume&type=build-cache")
    assert found["BuildCache"] == []
    assert found["Volumes"] == []
    assert "Containers" not in found
    status, found = await daemon.get("/system/df?type=shoe")
    assert (status, found) == (400, {"message": "unknown object type: shoe"})


# containers


async def test_five_hundred_containers_are_listed(daemon: Daemon):
    for n in range(500):
        await daemon.add(f"c{n}", created=n)
    _, found = await daemon.get("/containers/json")
    assert len(found) == 500
    _, found = await daemon.get("/containers/json?limit=3")
    assert [each["Names"] for each in found] == [["/c499"], ["/c498"], ["/c497"]]


@pytest.mark.parametrize("shape", [{"name": {"web": True}}, {"name": ["web"]}])
async def test_both_shapes_of_filters_are_read(daemon: Daemon, shape: object):
    for name in ("web", "db"):
        await daemon.add(name)
    _, found = await daemon.get(f"/containers/json?filters={filters(shape)}")
    assert [each["Names"] for each in found] == [["/web"]]


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("filters=" + filters({"shoe": ["1"]}), "invalid filter 'shoe'"),
        ("filters=" + filters({"name": "web"}), "invalid filter"),
        ("filters=nonsense", "invalid filter"),
        ("limit=many", 'strconv.Atoi: parsing "many": invalid syntax'),
    ],
)
async def test_senseless_list_requests_are_refused_in_dockers_words(daemon: Daemon, query: str, words: str):
    assert await daemon.get(f"/containers/json?{query}") == (400, {"message": words})


async def test_create_without_a_body_is_refused(daemon: Daemon):
    assert await daemon.post("/containers/create") == (
        400,
        {"message": "invalid JSON: got EOF while reading request body"},
    )


async def test_create_from_a_missing_image_is_how_the_cli_learns_to_pull(daemon: Daemon):
    status, found = await daemon.post("/containers/create?name=web", {"Image": "busybox"})
    assert (status, found) == (404, {"message": "No such image: busybox:latest"})


async def test_create_names_the_field_that_is_wrong(daemon: Daemon):
    status, found = await daemon.post("/containers/create", {"Image": "x", "HostConfig": {"Memory": "much"}})
    assert status == 400
    assert found["message"].startswith("invalid JSON: ")
    assert "HostConfig" in found["message"]


async def test_a_start_with_a_host_config_is_refused(daemon: Daemon):
    await daemon.add("web", status=Status.EXITED)
    status, found = await daemon.post("/containers/web/start", {"Privileged": True})
    assert status == 400
    assert found["message"].startswith("starting container with non-empty request body was deprecated")


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", "json"),
        ("GET", "top"),
        ("GET", "logs?stdout=1"),
        ("GET", "stats?stream=0"),
        ("POST", "start"),
        ("POST", "stop"),
        ("POST", "restart"),
        ("POST", "kill"),
        ("POST", "pause"),
        ("POST", "unpause"),
        ("POST", "rename?name=other"),
        ("POST", "resize?h=1&w=1"),
        ("POST", "wait"),
        ("POST", "attach"),
        ("POST", "exec"),
        ("DELETE", ""),
    ],
)
async def test_what_is_not_there_is_named(daemon: Daemon, method: str, target: str):
    request = f"{method} /v1.51/containers/nobody{'/' if target else ''}{target} HTTP/1.1\r\nHost: d\r\n"
    status, _, body = await ask(daemon.path, f"{request}Content-Length: 0\r\n\r\n".encode())
    assert (status, json.loads(body)) == (404, {"message": "No such container: nobody"})


async def test_starting_what_runs_is_not_modified(daemon: Daemon):
    await daemon.add("web")
    assert await daemon.post("/containers/web/start") == (304, None)


async def test_renaming_to_a_taken_name_is_a_conflict(daemon: Daemon):
    web, _ = await daemon.add("web"), await daemon.add("db")
    status, found = await daemon.post("/containers/db/rename?name=web")
    assert status == 409
    assert f'The container name "/web" is already in use by container "{web.id}"' in found["message"]


async def test_renaming_is_seen_at_once(daemon: Daemon):
    await daemon.add("web")
    assert await daemon.post("/containers/web/rename?name=www") == (204, None)
    _, found = await daemon.get("/containers/json")
    assert [each["Names"] for each in found] == [["/www"]]


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("h=x&w=1", 'invalid resize height "x": invalid syntax'),
        ("h=1&w=", 'invalid resize width "": invalid syntax'),
        ("h=-1&w=1", 'invalid resize height "-1": value out of range'),
        ("h=4294967296&w=1", 'invalid resize height "4294967296": value out of range'),
    ],
)
async def test_a_senseless_window_size_is_refused_in_dockers_words(daemon: Daemon, query: str, words: str):
    await daemon.add("web")
    assert await daemon.post(f"/containers/web/resize?{query}") == (400, {"message": words})


async def test_logs_of_no_stream_are_refused(daemon: Daemon):
    await daemon.add("web")
    assert await daemon.get("/containers/web/logs?follow=1") == (
        400,
        {"message": "Bad parameters: you must choose at least one stream"},
    )


async def test_stats_cannot_be_a_stream_and_a_single_shot(daemon: Daemon):
    await daemon.add("web")
    assert await daemon.get("/containers/web/stats?one-shot=1") == (
        400,
        {"message": "cannot have stream=true and one-shot=true"},
    )


# wait


async def test_wait_sends_its_head_before_there_is_anything_to_say(daemon: Daemon):
    live = daemon.containers.live_of(await daemon.add("web"))
    async with connected(daemon.path) as client:
        await client.send(post("/containers/web/wait?condition=next-exit"))
        status, headers = await client.head()  # the CLI starts the container only now
        assert status == 200
        assert headers["content-type"] == "application/json"
        live.finish_exit(WaitResult(code=7))
        assert b'{"StatusCode":7}\n' in await client.reader.readuntil(b"\r\n0\r\n\r\n")


async def test_wait_tells_why_a_container_could_not_run(daemon: Daemon):
    live = daemon.containers.live_of(await daemon.add("web"))
    async with connected(daemon.path) as client:
        await client.send(post("/containers/web/wait?condition=removed"))
        await client.head()
        live.finish_removal(WaitResult(code=127, error="no such file"))
        body = await client.reader.readuntil(b"\r\n0\r\n\r\n")
        assert b'{"StatusCode":127,"Error":{"Message":"no such file"}}' in body


async def test_a_client_that_stops_waiting_is_forgotten(daemon: Daemon):
    live = daemon.containers.live_of(await daemon.add("web"))
    async with connected(daemon.path) as client:
        await client.send(post("/containers/web/wait"))
        await client.head()
        assert len(live.exit_waiters) == 1
    async with asyncio.timeout(5):
        while live.exit_waiters:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_an_unknown_condition_is_refused(daemon: Daemon):
    await daemon.add("web")
    assert await daemon.post("/containers/web/wait?condition=bored") == (
        400,
        {"message": 'invalid condition: "bored"'},
    )


# events


def happened(action: str, *, kind: str = "container", at: int = 5, **attributes: str) -> Event:
    return Event(type=kind, action=action, actor="c" * 64, attributes=attributes, time=at * 10**9)


async def past(daemon: Daemon, query: str) -> list[str]:
    _, _, body = await ask(daemon.path, get(f"/events?until=100&{query}"))
    return [json.loads(line)["Action"] for line in body.splitlines()]


async def test_an_event_has_its_old_keys_and_its_new_ones(daemon: Daemon):
    daemon.events.publish(happened("start", image="busybox", name="web"))
    _, _, body = await ask(daemon.path, get("/events?since=1&until=100"))
    assert json.loads(body) == {
        "status": "start",
        "id": "c" * 64,
        "from": "busybox",
        "Type": "container",
        "Action": "start",
        "Actor": {"ID": "c" * 64, "Attributes": {"image": "busybox", "name": "web"}},
        "scope": "local",
        "time": 5,
        "timeNano": 5 * 10**9,
    }


@pytest.mark.parametrize(
    ("wanted", "actions"),
    [
        ({}, ["create", "exec_create: sh", "die", "pull", "mount"]),
        ({"type": ["container"]}, ["create", "exec_create: sh", "die"]),
        ({"type": ["image", "volume"]}, ["pull", "mount"]),
        ({"event": ["die"]}, ["die"]),
        ({"event": ["di"]}, []),
        ({"event": ["exec_create"]}, ["exec_create: sh"]),
        ({"container": ["web"]}, ["create", "exec_create: sh", "die"]),
        ({"container": ["ccc"]}, ["create", "exec_create: sh", "die", "pull", "mount"]),
        ({"container": ["db"]}, []),
        ({"image": ["busybox"]}, ["create", "exec_create: sh", "die", "pull"]),
        ({"image": ["busybox:1.36"]}, ["create", "exec_create: sh", "die"]),
        ({"label": ["a=b"]}, ["die"]),
        ({"label": ["a"], "type": {"image": True}}, []),
        ({"scope": ["swarm"]}, []),
    ],
)
async def test_events_are_filtered_by_dockers_rules(daemon: Daemon, wanted: object, actions: list[str]):
    about = {"image": "busybox:1.36", "name": "web"}
    for event in (
        happened("create", **about),
        happened("exec_create: sh", **about),
        happened("die", a="b", **about),
        happened("pull", kind="image", name="busybox"),
        happened("mount", kind="volume"),
    ):
        daemon.events.publish(event)
    assert await past(daemon, f"since=1&filters={filters(wanted)}") == actions


async def test_events_of_a_time_span(daemon: Daemon):
    for second in (1, 2, 3):
        daemon.events.publish(happened(f"a{second}", at=second))
    assert await past(daemon, "since=2") == ["a2", "a3"]
    assert await past(daemon, "since=1.5") == ["a2", "a3"]
    _, _, body = await ask(daemon.path, get("/events?since=1&until=2.5"))
    assert len(body.splitlines()) == 2


async def test_events_arrive_as_they_happen_after_the_head(daemon: Daemon):
    async with connected(daemon.path) as client:
        await client.send(get("/events"))
        assert (await client.head())[0] == 200
        daemon.events.publish(happened("start"))
        assert b'"start"' in await client.reader.readuntil(b"}\n")
        daemon.events.publish(happened("die"))
        assert b'"die"' in await client.reader.readuntil(b"}\n")


async def test_a_listener_that_goes_is_forgotten(daemon: Daemon):
    async with connected(daemon.path) as client:
        await client.send(get("/events"))
        await client.head()
        assert len(daemon.events._ears) == 1
    async with asyncio.timeout(5):
        while daemon.events._ears:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("since=x", 'failed to parse value as time or duration: "x"'),
        ("since=5&until=4", "`since` time (5) cannot be after `until` time (4)"),
        ("filters=" + filters({"shoe": ["1"]}), "invalid filter 'shoe'"),
    ],
)
async def test_senseless_event_requests_are_refused(daemon: Daemon, query: str, words: str):
    assert await daemon.get(f"/events?{query}") == (400, {"message": words})


# images, volumes, networks


async def test_images_that_are_not_there_are_named(daemon: Daemon):
    for target in ("json", "history", "get"):
        status, found = await daemon.get(f"/images/docker.io%2Flibrary%2Fx:1/{target}")
        assert (status, found) == (404, {"message": "No such image: x:1"}), target
    assert await daemon.delete("/images/x") == (404, {"message": "No such image: x:latest"})
    assert await daemon.get("/images/json") == (200, [])


async def test_a_malformed_image_name_is_refused_before_anything_is_fetched(daemon: Daemon):
    status, found = await daemon.post("/images/create?fromImage=UPPER")
    assert status == 400
    assert found["message"] == "invalid reference format: repository name (library/UPPER) must be lowercase"


async def test_an_upload_that_is_no_archive_is_refused(daemon: Daemon):
    status, _, body = await ask(daemon.path, post("/images/load?quiet=1", b"no archive at all"))
    assert status == 400
    assert json.loads(body)["message"]


async def test_a_volume_comes_and_goes(daemon: Daemon):
    status, made = await daemon.post("/volumes/create", {"Name": "data", "Labels": {"a": "b"}})
    assert status == 201
    assert made["Name"] == "data"
    assert await daemon.get("/volumes/data") == (200, made)
    for shape in ({"label": {"a=b": True}}, {"label": ["a"]}):
        _, found = await daemon.get(f"/volumes?filters={filters(shape)}")
        assert found["Volumes"] == [made]
    assert await daemon.delete("/volumes/data") == (204, None)
    status, found = await daemon.get("/volumes/data")
    assert status == 404
    assert "data" in found["message"]
    assert (await daemon.delete("/volumes/data?force=1"))[0] == 204


async def test_before_1_42_named_volumes_are_pruned_too(daemon: Daemon):
    await daemon.post("/volumes/create", {"Name": "data"})
    assert (await daemon.post("/v1.42/volumes/prune"))[1]["VolumesDeleted"] == []
    assert (await daemon.post("/v1.41/volumes/prune"))[1]["VolumesDeleted"] == ["data"]


async def test_a_network_is_shown_with_those_that_run_on_it(daemon: Daemon):
    web = await daemon.add("web")
    await daemon.add("old", status=Status.EXITED)
    assert (await daemon.get("/networks/bridge"))[1]["Name"] == "bridge"
    assert list(daemon.networks.asked[-1]) == [web.id]
    assert await daemon.get("/networks/nothing") == (404, {"message": "network nothing not found"})


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        ({}, ["bridge", "front", "host"]),
        ({"driver": ["host"]}, ["host"]),
        ({"name": ["bri"]}, ["bridge"]),
        ({"id": ["bbb"]}, ["bridge"]),
        ({"type": ["custom"]}, ["front"]),
        ({"scope": ["swarm"]}, []),
        ({"type": ["builtin"]}, ["bridge", "host"]),
        ({"label": ["x"]}, ["front"]),
        ({"label": ["x=2"]}, []),
        ({"dangling": ["true"]}, ["front"]),
        ({"dangling": ["false"]}, ["bridge", "host"]),
    ],
)
async def test_networks_are_filtered(daemon: Daemon, wanted: object, names: list[str]):
    _, found = await daemon.get(f"/networks?filters={filters(wanted)}")
    assert [each["Name"] for each in found] == names


async def test_networks_come_and_go(daemon: Daemon):
    body = {"Name": "mine", "EnableIPv6": True, "IPAM": {"Config": [{"Subnet": "10.5.0.0/16"}]}, "Labels": None}
    assert await daemon.post("/networks/create", body) == (201, {"Id": "a" * 64, "Warning": "be careful"})
    made = daemon.networks.made[-1]
    assert (made.name, made.enable_ipv6, made.ipam and made.ipam.config) == (
        "mine",
        True,
        [IPAMPool(subnet="10.5.0.0/16")],
    )
    assert (await daemon.delete("/networks/front"))[0] == 204
    assert daemon.networks.removed == ["front"]
    assert await daemon.delete("/networks/bridge") == (
        403,
        {"message": "bridge is a pre-defined network and cannot be removed"},
    )
    assert (await daemon.post("/networks/prune"))[1] == {"NetworksDeleted": ["front"]}
    until = filters({"until": ["1s"]})
    assert (await daemon.post(f"/networks/prune?filters={until}"))[1] == {"NetworksDeleted": None}
    assert (await daemon.post(f"/networks/prune?filters={filters({'name': ['x']})}"))[0] == 400


async def test_a_network_is_looked_at_within_its_scope(daemon: Daemon):
    assert (await daemon.get("/networks/bridge?scope=local&verbose=true"))[0] == 200
    assert await daemon.get("/networks/bridge?scope=swarm") == (404, {"message": "network bridge not found"})
    assert (await daemon.get("/networks/bridge?verbose=zz"))[1]["message"] == (
        'invalid value for verbose: zz: strconv.ParseBool: parsing "zz": invalid syntax'
    )
    assert "EnableIPv4" in (await daemon.get("/v1.48/networks"))[1][0]
    assert "EnableIPv4" not in (await daemon.get("/v1.47/networks"))[1][0]


async def test_a_container_that_does_not_run_comes_onto_a_network_and_leaves_it(daemon: Daemon):
    await daemon.add("web", status=Status.EXITED)
    body = {"Container": "web", "EndpointConfig": {"Aliases": ["www"], "IPAMConfig": {}, "DriverOpts": None}}
    assert (await daemon.post("/networks/front/connect", body))[0] == 200
    seen = {}
    for version in ("1.51", "1.44"):
        _, (web,) = await daemon.get(f"/v{version}/containers/json?all=1")
        seen[version] = web["NetworkSettings"]["Networks"]
    assert list(seen["1.51"]) == ["bridge", "front"]
    assert seen["1.51"]["front"]["Aliases"] == ["www"]
    assert seen["1.51"]["front"]["GwPriority"] == 0
    assert seen["1.44"]["front"]["Aliases"] == ["www", *seen["1.51"]["front"]["DNSNames"][2:]]
    assert web["Id"][:12] in seen["1.44"]["front"]["Aliases"]
    assert seen["1.44"]["bridge"]["Aliases"] is None
    assert "GwPriority" not in seen["1.44"]["front"]
    assert (await daemon.post("/networks/front/disconnect", {"Container": "web", "Force": True}))[0] == 200
    status, found = await daemon.post("/networks/front/disconnect", {"Container": "web"})
    assert status == 500
    assert found["message"].endswith("is not connected to the network front")
    assert await daemon.post("/networks/front/connect", {"Container": "nosuch"}) == (
        404,
        {"message": "No such container: nosuch"},
    )


async def test_before_1_44_a_container_is_made_on_one_network(daemon: Daemon):
    body = {"Image": "busybox", "NetworkingConfig": {"EndpointsConfig": {"bridge": {}, "front": {}}}}
    assert await daemon.post("/v1.43/containers/create", body) == (
        400,
        {"message": "Container cannot be connected to network endpoints: bridge, front"},
    )


async def test_what_is_not_there_yet_says_so(daemon: Daemon):
    assert (await daemon.post("/swarm/init", {}))[0] == 501


async def test_swarm_questions_are_answered_as_by_a_node_outside_a_swarm(daemon: Daemon):
    for target in ("/swarm", "/nodes", "/services", "/tasks", "/secrets/x", "/configs"):
        status, found = await daemon.get(target)
        assert status == 503
        assert found["message"].startswith("This node is not a swarm manager."), target


async def test_system_prune_finds_every_endpoint_it_asks(daemon: Daemon):
    for kind in ("containers", "networks", "volumes", "images", "build"):
        status, _ = await daemon.post(f"/{kind}/prune")
        assert status == 200, kind


async def test_inspecting_anything_ends_with_a_plugin_that_is_not_there(daemon: Daemon):
    assert await daemon.get("/plugins/x/json") == (404, {"message": 'plugin "x" not found'})
