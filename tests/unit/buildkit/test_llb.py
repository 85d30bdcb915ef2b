import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.builder.graph import (
    Copy,
    Diff,
    Exec,
    ExecMount,
    Files,
    FileStep,
    GitSource,
    HttpSource,
    ImageSource,
    LocalSource,
    MakeDirectory,
    MakeFile,
    MakeSymlink,
    Merge,
    MountKind,
    NetworkMode,
    Owner,
    Range,
    Remove,
    ResolveMode,
    Sharing,
    TreeSource,
    Ulimit,
)
from wherry.buildkit import bk_pb2 as pb
from wherry.buildkit.llb import define, load
from wherry.digest import of
from wherry.errors import InvalidParameter, NotSupported, WherryError
from wherry.spec.image import Platform

DIGEST = "sha256:" + "a" * 64


def definition(*ops: pb.Op, last: pb.Op | None = None, **metadata) -> pb.Definition:
    """The ops, and an end that names the last of them."""
    encoded = [op.SerializeToString() for op in ops]
    end = last or pb.Op(inputs=[pb.Input(digest=of(encoded[-1]))])
    return pb.Definition(ops=[*encoded, end.SerializeToString()], metadata=metadata)


def source(identifier: str, **attrs: str) -> pb.Op:
    given = {key.replace("__", "."): value for key, value in attrs.items()}
    return pb.Op(source=pb.SourceOp(identifier=identifier, attrs=given))


def read(identifier: str, **attrs: str):
    return load(definition(source(identifier, **attrs))).vertex.op


def on(op: pb.Op, *below: pb.Op, index: int = 0) -> pb.Op:
    op.inputs.extend(pb.Input(digest=of(each.SerializeToString()), index=index) for each in below)
    return op


def test_no_operations_are_the_empty_tree():
    assert load(pb.Definition()) is None


@pytest.mark.parametrize(
    ("op", "expected"),
    [
        (
            source("docker-image://docker.io/library/alpine:3.20", image__resolvemode="local"),
            ImageSource(reference="docker.io/library/alpine:3.20", mode=ResolveMode.LOCAL),
        ),
        (
            source(f"docker-image://alpine@{DIGEST}"),
            ImageSource(reference=f"docker.io/library/alpine@{DIGEST}", digest=DIGEST),
        ),
        (
            source("docker-image://alpine", image__checksum=DIGEST),
            ImageSource(reference="docker.io/library/alpine:latest", digest=DIGEST),
        ),
        (
            source(f"oci-layout://here/x@{DIGEST}", oci__store="st"),
            ImageSource(reference=f"here/x@{DIGEST}", digest=DIGEST, store="st"),
        ),
        (
            source(
                "local://context",
                local__includepattern='["a"]',
                local__excludepatterns='["b","!c"]',
                local__followpaths='["d"]',
                local__sharedkeyhint="hint",
                local__session="s2",
            ),
            LocalSource(
                name="context", include=("a",), exclude=("b", "!c"), follow=("d",), shared_key="hint", session="s2"
            ),
        ),
        (
            source(
                "git://github.com/x/y.git#v1:sub",
                git__fullurl="https://github.com/x/y.git",
                git__keepgitdir="true",
                git__mountsshsock="default",
            ),
            GitSource(
                remote="https://github.com/x/y.git",
                ref="v1",
                subdirectory="sub",
                keep_git_directory=True,
                ssh="default",
            ),
        ),
        (source("git://github.com/x/y.git"), GitSource(remote="https://github.com/x/y.git")),
        (
            source("https://e.example/f.tgz", http__checksum=DIGEST, http__filename="f", http__perm="644"),
            HttpSource(url="https://e.example/f.tgz", checksum=DIGEST, filename="f", mode=0o644),
        ),
        (source("engine-ref://abc"), TreeSource(id="abc")),
    ],
    ids=str,
)
def test_sources(op, expected):
    assert load(definition(op)).vertex.op == expected


@pytest.mark.parametrize(
    ("op", "error"),
    [
        (source("ftp://x/y"), NotSupported),
        (source("nothing"), InvalidParameter),
        (source("docker-image://UPPER"), InvalidParameter),
        (source("docker-image://x", image__resolvemode="sometimes"), InvalidParameter),
        (source("docker-image://x", image__layerlimit="2"), NotSupported),
        (source("oci-layout://x"), InvalidParameter),
        (source("local://x", local__includepattern="[1]"), InvalidParameter),
        (source("local://x", local__includepattern="["), InvalidParameter),
        (source("http://x", http__perm="rw"), InvalidParameter),
        (source("http://x", http__checksum="md5:1"), InvalidParameter),
        (pb.Op(build=pb.BuildOp(builder=1)), NotSupported),
        (pb.Op(file=pb.FileOp()), InvalidParameter),
        (pb.Op(exec=pb.ExecOp()), InvalidParameter),
        (pb.Op(exec=pb.ExecOp(meta=pb.Meta(args=["x"]), network=7)), InvalidParameter),
        (pb.Op(exec=pb.ExecOp(meta=pb.Meta(args=["x"]), mounts=[pb.Mount(dest="/", mount_type=9)])), InvalidParameter),
        (pb.Op(exec=pb.ExecOp(meta=pb.Meta(args=["x"]), mounts=[pb.Mount(dest="/", input=3)])), InvalidParameter),
        (pb.Op(diff=pb.DiffOp(lower=pb.DiffInput(input=2), upper=pb.DiffInput(input=-1))), InvalidParameter),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_refused(op, error):
    with pytest.raises(error):
        load(definition(op))


def test_a_program_with_everything():
    base, tools = source("docker-image://alpine"), source("local://context")
    run = on(
        pb.Op(
            platform=pb.Platform(os="linux", architecture="arm64"),
            exec=pb.ExecOp(
                meta=pb.Meta(
                    args=["make", "all"],
                    env=["A=b"],
                    cwd="/src",
                    user="u",
                    hostname="h",
                    proxy_env=pb.ProxyEnv(http_proxy="p"),
                    extra_hosts=[pb.HostIP(host="x", ip="10.0.0.1")],
                    ulimit=[pb.Ulimit(name="nofile", soft=1, hard=2)],
                    cgroup_parent="/g",
                    valid_exit_codes=[0, 3],
                ),
                mounts=[
                    pb.Mount(dest="/", input=0, output=0),
                    pb.Mount(dest="/in", input=1, output=-1, readonly=True, selector="/sub"),
                    pb.Mount(dest="/c", input=-1, output=-1, mount_type=3, cache_opt=pb.CacheOpt(id="go", sharing=2)),
                    pb.Mount(dest="/t", input=-1, output=-1, mount_type=4, tmpfs_opt=pb.TmpfsOpt(size=5)),
                    pb.Mount(
                        dest="/s",
                        input=-1,
                        output=-1,
                        mount_type=1,
                        secret_opt=pb.SecretOpt(id="npm", uid=1, gid=2, mode=0o400, optional=True),
                    ),
                    pb.Mount(dest="/a", input=-1, output=-1, mount_type=2, ssh_opt=pb.SecretOpt(mode=0o600)),
                ],
                network=2,
                secretenv=[pb.SecretEnv(id="tok", name="TOKEN")],
            ),
        ),
        base,
        tools,
    )
    found = load(definition(base, tools, run))
    assert found.vertex.platform == Platform(os="linux", architecture="arm64")
    assert [each.vertex.op.__class__ for each in found.vertex.inputs] == [ImageSource, LocalSource]
    assert found.vertex.op == Exec(
        args=("make", "all"),
        env=("A=b",),
        cwd="/src",
        user="u",
        hostname="h",
        mounts=(
            ExecMount(target="/", input=0, output=0),
            ExecMount(target="/in", input=1, readonly=True, selector="/sub"),
            ExecMount(target="/c", kind=MountKind.CACHE, cache_id="go", sharing=Sharing.LOCKED),
            ExecMount(target="/t", kind=MountKind.TMPFS, size=5),
            ExecMount(target="/s", kind=MountKind.SECRET, secret_id="npm", uid=1, gid=2, mode=0o400, optional=True),
            ExecMount(target="/a", kind=MountKind.SSH, secret_id="default", mode=0o600),
            ExecMount(target="", kind=MountKind.SECRET, secret_id="tok", env="TOKEN", readonly=True),
        ),
        network=NetworkMode.NONE,
        extra_hosts=(("x", "10.0.0.1"),),
        valid_exit_codes=(0, 3),
        proxies=("HTTP_PROXY=p", "http_proxy=p"),
        limits=found.vertex.op.limits,
    )
    assert found.vertex.op.limits.ulimits == (Ulimit("nofile", 1, 2),)
    assert found.vertex.op.limits.cgroup_parent == "/g"


@pytest.mark.parametrize(
    ("op", "entitlement"),
    [
        (pb.ExecOp(meta=pb.Meta(args=["x"]), network=1), "network.host"),
        (pb.ExecOp(meta=pb.Meta(args=["x"]), security=1), "security.insecure"),
        (pb.ExecOp(meta=pb.Meta(args=["x"]), cdi_devices=[pb.CDIDevice(name="gpu", optional=True)]), "device"),
    ],
)
def test_more_than_usual_must_have_been_allowed(op, entitlement):
    wanted = definition(pb.Op(exec=op))
    with pytest.raises(InvalidParameter, match=f"{entitlement} is not allowed"):
        load(wanted)
    found = load(wanted, entitlements=frozenset({entitlement})).vertex.op
    assert (found.network is NetworkMode.HOST) + found.insecure + (found.devices == ("?gpu",)) == 1


def test_file_actions_on_inputs_and_on_each_other():
    base, context = source("docker-image://alpine"), source("local://context")
    named = pb.ChownOpt(user=pb.UserOpt(by_name=pb.NamedUserOpt(name="u")), group=pb.UserOpt(by_id=7))
    actions = [
        pb.FileAction(
            input=0,
            secondary_input=1,
            output=-1,
            copy=pb.FileActionCopy(
                src="/a*",
                dest="/b/",
                owner=named,
                mode=-1,
                follow_symlink=True,
                dir_copy_contents=True,
                create_dest_path=True,
                allow_wildcard=True,
                attempt_unpack=True,
                exclude_patterns=["*.o"],
                timestamp=-1,
            ),
        ),
        pb.FileAction(
            input=2,
            secondary_input=-1,
            output=-1,
            mkfile=pb.FileActionMkFile(path="/f", mode=0o600, data=b"x", timestamp=5),
        ),
        pb.FileAction(
            input=3,
            secondary_input=-1,
            output=-1,
            mkdir=pb.FileActionMkDir(path="/d", mode=0o700, make_parents=True, timestamp=-1),
        ),
        pb.FileAction(
            input=4,
            secondary_input=-1,
            output=-1,
            symlink=pb.FileActionSymlink(oldpath="x", newpath="/l", timestamp=-1),
        ),
        pb.FileAction(input=5, secondary_input=-1, output=0, rm=pb.FileActionRm(path="/r", allow_wildcard=True)),
    ]
    found = load(definition(base, context, on(pb.Op(file=pb.FileOp(actions=actions)), base, context)))
    assert found.vertex.op == Files(
        steps=(
            FileStep(
                action=Copy(
                    source="/a*",
                    target="/b/",
                    owner=Owner(user="u", group="7"),
                    follow_symlink=True,
                    contents=True,
                    unpack=True,
                    exclude=("*.o",),
                ),
                input=0,
                secondary=1,
            ),
            FileStep(action=MakeFile(path="/f", data=b"x", mode=0o600, timestamp=5), input=2),
            FileStep(action=MakeDirectory(path="/d", mode=0o700, parents=True), input=3),
            FileStep(action=MakeSymlink(old="x", new="/l"), input=4),
            FileStep(action=Remove(path="/r", wildcard=True), input=5, output=0),
        )
    )


def test_an_action_cannot_use_what_comes_after_it():
    action = pb.FileAction(input=1, secondary_input=-1, output=0, mkdir=pb.FileActionMkDir(path="/d", mode=0o755))
    base = source("docker-image://alpine")
    with pytest.raises(InvalidParameter, match="no input 1"):
        load(definition(base, on(pb.Op(file=pb.FileOp(actions=[action])), base)))


def test_merging_and_differences():
    one, two = source("docker-image://one"), source("docker-image://two")
    merged = on(pb.Op(merge=pb.MergeOp(inputs=[pb.MergeInput(input=0), pb.MergeInput(input=1)])), one, two)
    found = load(definition(one, two, merged)).vertex
    assert isinstance(found.op, Merge)
    assert [each.vertex.op.reference for each in found.inputs] == [
        "docker.io/library/one:latest",
        "docker.io/library/two:latest",
    ]
    diff = on(pb.Op(diff=pb.DiffOp(lower=pb.DiffInput(input=-1), upper=pb.DiffInput(input=0))), one)
    found = load(definition(one, diff)).vertex
    assert isinstance(found.op, Diff)
    assert found.inputs[0] is None


def test_the_same_operation_is_one_vertex():
    base = source("docker-image://alpine")
    merged = on(pb.Op(merge=pb.MergeOp(inputs=[pb.MergeInput(input=0), pb.MergeInput(input=1)])), base, base)
    found = load(definition(base, base, merged)).vertex
    assert found.inputs[0].vertex is found.inputs[1].vertex


def test_names_places_and_ignored_caches_come_from_the_metadata():
    base = source("docker-image://alpine")
    name = of(base.SerializeToString())
    wanted = definition(base)
    wanted.metadata[name].CopyFrom(pb.OpMetadata(ignore_cache=True, description={"llb.customname": "FROM alpine"}))
    wanted.source.infos.append(pb.SourceInfo(filename="Dockerfile", data=b"FROM alpine\n"))
    place = pb.Location(source_index=0, ranges=[pb.Range(start=pb.Position(line=1), end=pb.Position(line=2))])
    wanted.source.locations[name].CopyFrom(pb.Locations(locations=[place]))
    found = load(wanted).vertex
    assert (found.name, found.ignore_cache) == ("FROM alpine", True)
    assert found.location.filename == "Dockerfile"
    assert found.location.ranges == (Range(1, 2, 1),)


def test_what_has_no_name_is_called_what_it_does():
    base = source("docker-image://alpine")
    run = on(pb.Op(exec=pb.ExecOp(meta=pb.Meta(args=["a", "b"]), mounts=[pb.Mount(dest="/")])), base)
    found = load(definition(base, run))
    assert (found.vertex.name, found.vertex.inputs[0].vertex.name) == ("a b", "docker-image://alpine")


def test_a_later_output_is_meant_by_its_index():
    base = source("docker-image://alpine")
    last = pb.Op(inputs=[pb.Input(digest=of(base.SerializeToString()), index=2)])
    assert load(definition(base, last=last)).index == 2


@pytest.mark.parametrize(
    "broken",
    [
        pb.Definition(ops=[b"\xff\xff"]),
        pb.Definition(ops=[source("docker-image://x").SerializeToString()]),  # no end
        pb.Definition(ops=[pb.Op().SerializeToString()]),
        definition(source("docker-image://x"), last=pb.Op(inputs=[pb.Input(digest=DIGEST)])),
        definition(source("docker-image://x"), last=pb.Op(inputs=[pb.Input(), pb.Input()])),
        definition(on(source("docker-image://x"), source("docker-image://later")), source("docker-image://later")),
        definition(
            source("docker-image://x"),
            last=pb.Op(inputs=[pb.Input(digest=of(source("docker-image://x").SerializeToString()), index=-1)]),
        ),
        pb.Definition(ops=[pb.Op().SerializeToString()] * 60_000),
    ],
    ids=range(8),
)
def test_what_is_no_graph_is_refused(broken):
    with pytest.raises(InvalidParameter):
        load(broken)


@given(st.lists(st.binary(max_size=60), min_size=1, max_size=5))
def test_no_bytes_do_harm(ops):
    with contextlib.suppress(WherryError):
        load(pb.Definition(ops=ops))


def test_a_result_can_be_named_and_found_again():
    wanted = define("result-1")
    found = load(pb.Definition.FromString(wanted.SerializeToString()))
    assert found.vertex.op == TreeSource(id="result-1")
    assert set(wanted.metadata) == {of(each) for each in wanted.ops}
