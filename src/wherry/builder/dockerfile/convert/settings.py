"""Instructions that change what an image says of itself, and no file."""

from wherry.builder.dockerfile.convert.naming import go_duration, go_list, go_quoted_list, go_rune
from wherry.builder.dockerfile.convert.state import Building
from wherry.builder.dockerfile.errors import DockerfileError
from wherry.builder.dockerfile.instructions import (
    Arg,
    ArgPair,
    Cmd,
    Command,
    Entrypoint,
    Env,
    Expose,
    Healthcheck,
    Instruction,
    Label,
    Maintainer,
    Onbuild,
    Pair,
    Shell,
    StopSignal,
    User,
    Volume,
)
from wherry.images.making.changes import check_signal, ports_of
from wherry.spec.engine import HealthConfig

MAX_PORTS = 1 << 17  # that one instruction may list: every one of two protocols


def apply_setting(building: Building, instruction: Instruction) -> None:
    """Change config, variables and history of the stage. Raises InvalidParameter."""
    match instruction:
        case Env():
            _env(building, instruction)
        case Arg():
            _arg(building, instruction)
        case Label():
            pairs = _pairs(building, instruction.pairs)
            building.change(labels={**(building.config.labels or {}), **dict(pairs)})
            building.tell(_listed("LABEL", pairs))
        case Cmd():
            words = _command(building, instruction)
            building.change(cmd=list(words), args_escaped=True)
            building.command_set = True
            building.tell(f"CMD {go_quoted_list(words)}")
        case Entrypoint():
            _entrypoint(building, instruction)
        case Shell(words=words):
            building.change(shell=list(words))
            building.tell(f"SHELL {go_list(words)}")
        case Healthcheck():
            _healthcheck(building, instruction)
        case Expose():
            _expose(building, instruction)
        case Volume():
            _volume(building, instruction)
        case User():
            building.change(user=building.reader().text(instruction.user))
            building.tell(f"USER {building.config.user}")
        case StopSignal():
            signal = building.reader().text(instruction.signal)
            check_signal(signal)
            building.change(stop_signal=signal)
            building.tell(f"STOPSIGNAL {signal}")
        case Onbuild(expression=expression):
            building.change(on_build=[*(building.config.on_build or []), expression])
        case Maintainer(maintainer=maintainer):
            building.author = maintainer
            building.tell(f"MAINTAINER {maintainer}")
        case _:
            raise AssertionError(f"no setting: {instruction.name}")


def _pairs(building: Building, pairs: tuple[Pair, ...]) -> list[tuple[str, str]]:
    """All with the values from before the instruction."""
    reader = building.reader()
    return [(reader.text(pair.name), reader.text(pair.value)) for pair in pairs]


def _listed(name: str, pairs: list[tuple[str, str]]) -> str:
    return " ".join([name, *(f"{key}={value}" for key, value in pairs)])


def _env(building: Building, instruction: Env) -> None:
    pairs = _pairs(building, instruction.pairs)
    building.scope.env.update(pairs)
    env = dict(entry.partition("=")[::2] for entry in building.config.env or []) | dict(pairs)
    building.change(env=[f"{name}={value}" for name, value in env.items()])
    building.tell(_listed("ENV", pairs))


def _arg(building: Building, instruction: Arg) -> None:
    """History tells the defaults, not what was given with the build: that is told where it is used."""
    common, said = building.common, []
    for arg in instruction.args:
        default = _default(building, arg)
        given = common.options.build_args.get(arg.name)
        value = given if given is not None else default if default is not None else common.global_args.get(arg.name)
        building.scope.declare(arg.name, value)
        said.append(arg.name if default is None else f"{arg.name}={default}")
    building.tell(" ".join(["ARG", *said]))


def _default(building: Building, arg: ArgPair) -> str | None:
    """With the values of the arguments before it; one that is not needed may be wrong."""
    if arg.default is None:
        return None
    try:
        return building.reader().text(arg.default)
    except DockerfileError:
        if arg.name in building.common.options.build_args:
            return arg.default
        raise


def _command(building: Building, instruction: Command) -> tuple[str, ...]:
    if not instruction.shell:
        return instruction.words
    return building.shell(" ".join(instruction.words))


def _entrypoint(building: Building, instruction: Entrypoint) -> None:
    words = _command(building, instruction)
    building.change(entrypoint=list(words))
    if not building.command_set:
        building.change(cmd=None)  # the command of the base was for another one
    building.tell(f"ENTRYPOINT {go_quoted_list(words)}")


def _healthcheck(building: Building, instruction: Healthcheck) -> None:
    found = instruction
    building.change(
        healthcheck=HealthConfig(
            test=list(found.test),
            interval=found.interval,
            timeout=found.timeout,
            start_period=found.start_period,
            start_interval=found.start_interval,
            retries=found.retries,
        )
    )
    durations = (found.interval, found.timeout, found.start_period, found.start_interval)
    shown = " ".join(f'"{go_duration(duration)}"' for duration in durations)
    building.tell(f"HEALTHCHECK &{{{go_quoted_list(found.test)} {shown} {go_rune(found.retries)}}}")


def _expose(building: Building, instruction: Expose) -> None:
    reader = building.reader()
    ports: list[str] = []
    for word in instruction.ports:
        for spec in reader.words(word):
            ports += ports_of(spec)
            if len(ports) > MAX_PORTS:
                raise DockerfileError(f"more than {MAX_PORTS} ports")
    building.change(exposed_ports={**(building.config.exposed_ports or {}), **{port: {} for port in ports}})
    building.tell(f"EXPOSE map[{' '.join(f'{port}:{{}}' for port in sorted(set(ports)))}]")


def _volume(building: Building, instruction: Volume) -> None:
    reader = building.reader()
    paths = [reader.text(path) for path in instruction.paths]
    if not all(paths):
        raise DockerfileError("VOLUME specified can not be an empty string")
    building.change(volumes={**(building.config.volumes or {}), **{path: {} for path in paths}})
    building.tell(f"VOLUME {go_list(paths)}")
