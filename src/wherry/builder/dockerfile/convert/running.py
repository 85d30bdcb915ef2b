"""RUN: a program in the stage's tree, with what `--mount` shows it besides."""

import posixpath
from collections.abc import Callable, Mapping
from dataclasses import replace

from wherry.builder.dockerfile.convert.copying import absolute
from wherry.builder.dockerfile.convert.drawing import Draft, Tree, use
from wherry.builder.dockerfile.convert.naming import ran, summary
from wherry.builder.dockerfile.convert.scope import proxies
from wherry.builder.dockerfile.convert.state import Building, Step
from wherry.builder.dockerfile.errors import DockerfileError, quoted
from wherry.builder.dockerfile.instructions import Run
from wherry.builder.dockerfile.mounts import Mount
from wherry.builder.dockerfile.parser import heredoc_of
from wherry.builder.graph import (
    NO_INPUT,
    Exec,
    ExecMount,
    Files,
    FileStep,
    MakeFile,
    MountKind,
    NetworkMode,
    Sharing,
)

SCRIPTS = "/dev/pipes"  # where a here-document that names its own interpreter is found
AGENT = "/run/buildkit/ssh_agent."
SECRETS = "/run/secrets"

Lookup = Callable[[str], Tree]  # what a `from=` is called -> its tree


def run(building: Building, step: Step, instruction: Run, lookup: Lookup) -> None:
    """Add the step to the stage. Raises InvalidParameter."""
    options, scope = building.common.options, building.scope
    inputs: list[Tree] = [building.tree]
    mounts = [ExecMount(target="/", input=0, output=0)]
    args, script = _command(building, instruction)
    if script is not None:
        inputs.append(script)
        mounts.append(ExecMount(target=SCRIPTS, input=len(inputs) - 1, readonly=True))
    found = instruction.mounts(building.reader().text)
    for mount in found:
        mounts += _mount(building, mount, mounts, inputs, lookup)
    env = _environment(scope.env, mounts)
    op = Exec(
        args=args,
        env=tuple(f"{name}={value}" for name, value in env.items()),
        cwd=building.config.working_dir or "/",
        user=building.config.user,
        hostname=options.hostname,
        mounts=tuple(mounts),
        network=_network(building, instruction),
        insecure=_insecure(building, instruction),
        extra_hosts=tuple(options.extra_hosts),
        devices=_devices(building, instruction),
        proxies=proxies(options.build_args, env),
        on=options.on,
        limits=options.limits,
    )
    secrets = [mount.env for mount in found if mount.env]
    single = len(instruction.heredocs) == 1 and heredoc_of(instruction.words[0]) is not None
    note = f" ({summary(instruction.heredocs[0].content)})" if single else ""
    name = building.step_name(step, shell=True, note=note, hidden=secrets)
    draft = building.add(step, op, inputs, name=name, args=scope.build_args)
    building.tell(ran(args, scope.own_args), layer=draft)


def _environment(env: Mapping[str, str], mounts: list[ExecMount]) -> dict[str, str]:
    agents = [mount.target for mount in mounts if mount.kind is MountKind.SSH]
    return {"SSH_AUTH_SOCK": agents[0], **env} if agents else dict(env)


def _command(building: Building, instruction: Run) -> tuple[tuple[str, ...], Draft | None]:
    """Words of the program, and the tree of the script it is if the instruction brings one."""
    if not instruction.shell:
        return instruction.words, None
    line, heredocs = instruction.words[0], instruction.heredocs
    if not heredocs:
        return building.shell(line), None
    if heredoc_of(line) is None:  # the shell reads the here-documents itself
        line += "".join(f"\n{heredoc.content}{heredoc.name}" for heredoc in heredocs)
        return building.shell(line), None
    document = heredocs[0]
    if not document.text.startswith("#!"):
        return building.shell(document.text), None
    made = MakeFile(path=f"/{document.name}", data=document.text.encode(), mode=0o755)
    draft = Draft(
        op=Files(steps=(FileStep(action=made, output=0),)),
        name="[internal] preparing inline document",
        platform=building.platform,
    )
    return building.shell(f"{SCRIPTS}/{document.name}"), building.common.drawing.add(draft)


def _network(building: Building, instruction: Run) -> NetworkMode:
    match instruction.network:
        case "none":
            return NetworkMode.NONE
        case "host":
            _entitled(building, "network.host")
            return NetworkMode.HOST
        case _:
            return building.common.options.network


def _insecure(building: Building, instruction: Run) -> bool:
    if instruction.security == "insecure":
        _entitled(building, "security.insecure")
        return True
    return False


def _devices(building: Building, instruction: Run) -> tuple[str, ...]:
    if instruction.devices:
        _entitled(building, "device")
    return tuple(device.name if device.required else f"?{device.name}" for device in instruction.devices)


def _entitled(building: Building, what: str) -> None:
    if what not in building.common.options.entitlements:
        raise DockerfileError(f"{what} is not allowed: give the build --allow {what}")


# --- mounts -----------------------------------------------------------------------------------------------------------


def _mount(
    building: Building, mount: Mount, before: list[ExecMount], inputs: list[Tree], lookup: Lookup
) -> list[ExecMount]:
    match mount.kind:
        case MountKind.SECRET:
            return _secret(building, mount)
        case MountKind.SSH:
            number = sum(each.kind is MountKind.SSH for each in before)
            return [_agent(building, mount, number)]
        case MountKind.TMPFS:
            target = _target(building, mount)
            return [ExecMount(target=target, kind=mount.kind, size=mount.size, readonly=mount.readonly)]
        case MountKind.CACHE:
            return [_cache(building, mount, inputs, lookup)]
        case _:
            return [_bind(building, mount, inputs, lookup)]


def _target(building: Building, mount: Mount) -> str:
    target = absolute(building.config.working_dir, mount.target)
    if target == "/":
        raise DockerfileError(f"invalid mount target {quoted(target)}")
    return target


def _input(mount: Mount, inputs: list[Tree], tree: Tree) -> int:
    """Where `tree` is among the inputs; it comes to them."""
    if tree is None:
        return NO_INPUT
    use(tree, mount.source)
    inputs.append(tree)
    return len(inputs) - 1


def _selector(mount: Mount) -> str:
    found = absolute("/", mount.source)
    return "" if found == "/" else found


def _bind(building: Building, mount: Mount, inputs: list[Tree], lookup: Lookup) -> ExecMount:
    target = _target(building, mount)
    tree = lookup(mount.source_stage) if mount.source_stage else building.common.sources.context()
    return ExecMount(
        target=target, input=_input(mount, inputs, tree), selector=_selector(mount), readonly=mount.readonly
    )


def _cache(building: Building, mount: Mount, inputs: list[Tree], lookup: Lookup) -> ExecMount:
    target = _target(building, mount)
    tree = lookup(mount.source_stage) if mount.source_stage else None
    namespace = building.common.options.build_args.get("BUILDKIT_CACHE_MOUNT_NS", "")
    return ExecMount(
        target=target,
        kind=MountKind.CACHE,
        input=_input(mount, inputs, tree),
        selector=_selector(mount),
        readonly=mount.readonly,
        cache_id=f"{namespace}/{mount.id or posixpath.normpath(mount.target)}",
        sharing=mount.sharing or Sharing.SHARED,
        uid=mount.uid or 0,
        gid=mount.gid or 0,
        mode=0o755 if mount.mode is None else mount.mode,
    )


def _secret(building: Building, mount: Mount) -> list[ExecMount]:
    """A file, a variable, or both."""
    secret = mount.source or mount.id or posixpath.basename(mount.target)
    variable = ExecMount(
        target="", kind=MountKind.SECRET, secret_id=secret, env=mount.env or "", optional=not mount.required
    )
    file = replace(
        variable,
        target=absolute(building.config.working_dir, mount.target or f"{SECRETS}/{posixpath.basename(secret)}"),
        readonly=True,
        env="",
        uid=mount.uid or 0,
        gid=mount.gid or 0,
        mode=0o400 if mount.mode is None else mount.mode,
    )
    return [*([variable] if mount.env else []), *([file] if mount.target or not mount.env else [])]


def _agent(building: Building, mount: Mount, number: int) -> ExecMount:
    if mount.source:
        raise DockerfileError("ssh does not support source")
    return ExecMount(
        target=absolute(building.config.working_dir, mount.target or f"{AGENT}{number}"),
        kind=MountKind.SSH,
        secret_id=mount.id or "default",
        uid=mount.uid or 0,
        gid=mount.gid or 0,
        mode=0o600 if mount.mode is None else mount.mode,
        optional=not mount.required,
    )
