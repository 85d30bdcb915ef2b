"""`RUN --mount=…` and `--device=…`: their keys, aliases, defaults and what may stand together."""

from collections.abc import Callable
from dataclasses import dataclass

from wherry.builder.dockerfile.errors import DockerfileError, quoted, shortened
from wherry.builder.dockerfile.flags import csv_fields, parse_bool, parse_size
from wherry.builder.dockerfile.suggest import hint
from wherry.builder.graph import MountKind, Sharing

MAX_ID = 2**32 - 1

_KEYS = {  # as written: what is meant
    "type": "type",
    "from": "from",
    "source": "source",
    "src": "source",
    "target": "target",
    "dst": "target",
    "destination": "target",
    "readonly": "readonly",
    "ro": "readonly",
    "readwrite": "readwrite",
    "rw": "readwrite",
    "required": "required",
    "size": "size",
    "id": "id",
    "sharing": "sharing",
    "mode": "mode",
    "uid": "uid",
    "gid": "gid",
    "env": "env",
}
_WITHOUT_VALUE = ("readonly", "readwrite", "required")
_ASKED = (MountKind.SECRET, MountKind.SSH)  # of the client
_OWNED = (MountKind.SECRET, MountKind.SSH, MountKind.CACHE)

Expand = Callable[[str], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """As written, defaults of the target left to who knows the stage; None and "" = not given."""

    kind: MountKind = MountKind.BIND
    source_stage: str = ""  # from=: a stage, image or named context
    source: str = ""
    target: str = ""
    readonly: bool = True
    id: str = ""
    sharing: Sharing | None = None
    required: bool = False
    size: int = 0  # bytes
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    env: str | None = None  # variable that gets a secret; None = a file only


@dataclass(slots=True)
class _Draft:
    kind: MountKind = MountKind.BIND
    source_stage: str = ""
    source: str = ""
    target: str = ""
    readonly: bool | None = None
    id: str = ""
    sharing: Sharing | None = None
    required: bool = False
    size: int = 0
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    env: str | None = None


def parse_mount(text: str, expand: Expand) -> Mount:
    """`text` is what follows `--mount=`; `expand` replaces the variables of a value. Raises DockerfileError."""
    draft = _Draft()
    parts = csv_fields(text, "mounts")
    for part in sorted(parts, key=lambda part: not part.lower().startswith("type=")):  # the others depend on it
        _take(draft, part, expand)
    _validate(draft)
    return Mount(
        kind=draft.kind,
        source_stage=draft.source_stage,
        source=draft.source,
        target=draft.target,
        readonly=draft.kind not in (MountKind.CACHE, MountKind.TMPFS) if draft.readonly is None else draft.readonly,
        id=draft.id,
        sharing=draft.sharing,
        required=draft.required,
        size=draft.size,
        mode=draft.mode,
        uid=draft.uid,
        gid=draft.gid,
        env=draft.env,
    )


def check_early(text: str) -> None:
    """What can be said of a mount before variables have values. Raises DockerfileError."""
    if "$" not in text:
        parse_mount(text, str)
        return
    for part in csv_fields(text, "mounts"):
        key, _, value = part.partition("=")
        _meaning(key, part)
        if key.lower() == "from" and "$" in value[:-1]:
            raise DockerfileError("'from' doesn't support variable expansion, define alias stage instead", near=part)


def _meaning(key: str, part: str) -> str:
    meaning = _KEYS.get(key.lower())
    if meaning is None:
        raise DockerfileError(
            f"unexpected key '{shortened(key.lower())}' in '{shortened(part)}'{hint(key.lower(), _KEYS)}", near=part
        )
    return meaning


def _take(draft: _Draft, part: str, expand: Expand) -> None:
    key, equals, value = part.partition("=")
    key = key.lower()
    if not equals:
        if _KEYS.get(key) not in _WITHOUT_VALUE:
            near = hint(key, (name for name, meaning in _KEYS.items() if meaning in _WITHOUT_VALUE))
            raise DockerfileError(f"invalid field '{shortened(part)}' must be a key=value pair{near}", near=part)
        value = "true"
    meaning = _meaning(key, part)
    if meaning == "from":
        if "$" in value[:-1]:
            raise DockerfileError("'from' doesn't support variable expansion, define alias stage instead", near=part)
    else:
        value = expand(value)
    _set(draft, meaning, key, value)


def _set(draft: _Draft, meaning: str, key: str, value: str) -> None:
    match meaning:
        case "type":
            draft.kind = _kind(value)
        case "from":
            draft.source_stage = value
        case "source":
            draft.source = value
        case "target":
            draft.target = value
        case "readonly":
            draft.readonly = _truth(key, value)
        case "readwrite":
            draft.readonly = not _truth(key, value)
        case "required":
            _only(draft, key, *_ASKED)
            draft.required = _truth(key, value)
        case "size":
            _only(draft, key, MountKind.TMPFS)
            draft.size = _size(key, value)
        case "id":
            draft.id = value
        case "sharing":
            draft.sharing = _sharing(value)
        case "mode":
            draft.mode = _number(key, value, 8)
        case "uid":
            draft.uid = _number(key, value, 10)
        case "gid":
            draft.gid = _number(key, value, 10)
        case _:
            _only(draft, key, MountKind.SECRET)
            draft.env = value


def _kind(value: str) -> MountKind:
    try:
        return MountKind(value.lower())
    except ValueError:
        raise DockerfileError(f"unsupported mount type {quoted(value)}{hint(value, MountKind)}", near=value) from None


def _sharing(value: str) -> Sharing:
    try:
        return Sharing(value.lower())
    except ValueError:
        raise DockerfileError(f"unsupported sharing value {quoted(value)}{hint(value, Sharing)}", near=value) from None


def _only(draft: _Draft, key: str, *kinds: MountKind) -> None:
    if draft.kind not in kinds:
        raise DockerfileError(f"unexpected key '{key}' for mount type '{draft.kind}'", near=key)


def _truth(key: str, value: str) -> bool:
    found = parse_bool(value)
    if found is None:
        raise DockerfileError(f"invalid value for {key}: {shortened(value)}", near=f"{key}={value}")
    return found


def _size(key: str, value: str) -> int:
    found = parse_size(value)
    if found is None:
        raise DockerfileError(f"invalid value for {key}: {shortened(value)}", near=f"{key}={value}")
    return found


def _number(key: str, value: str, base: int) -> int:
    digits = "01234567" if base == 8 else "0123456789"
    if not value or len(value) > 20 or value.strip(digits) or int(value, base) > MAX_ID:
        raise DockerfileError(f"invalid value {shortened(value)} for {key}", near=f"{key}={value}")
    return int(value, base)


def _validate(draft: _Draft) -> None:
    if draft.kind not in _OWNED:
        for key, value in (("mode", draft.mode), ("uid", draft.uid), ("gid", draft.gid)):
            if value is not None:
                raise DockerfileError(f"{key} not allowed for {quoted(draft.kind)} type mounts", near=f"{key}=")
    if draft.kind is MountKind.SECRET:
        if draft.source_stage:
            raise DockerfileError("secret mount should not have a from", near="from=")
        if draft.sharing is not None:
            raise DockerfileError("secret mount should not define sharing", near="sharing=")
        if not (draft.source or draft.target or draft.id):
            raise DockerfileError("invalid secret mount. one of source, target required")
        if draft.source and draft.id:
            raise DockerfileError("both source and id can't be set", near="source=")
    if draft.sharing is not None and draft.kind is not MountKind.CACHE:
        raise DockerfileError(f"invalid cache sharing set for {draft.kind} mount", near="sharing=")


# --- devices ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    name: str  # a CDI name or a path; "" = any
    required: bool = False


def parse_device(text: str) -> Device:
    """`vendor.com/class=name[,required]`, `name=…,required=true`. Raises DockerfileError."""
    name, required = "", False
    for part in csv_fields(text, "devices"):
        key, equals, value = part.partition("=")
        match key.lower():
            case "required":
                required = _truth("required", value) if equals else True
            case "name" if equals:
                if name:
                    raise DockerfileError(f"device name already set to {shortened(name)}", near=part)
                name = value
            case _ if not name:
                name = part
            case lower if equals:
                known = hint(lower, ("name", "required"))
                raise DockerfileError(f"unexpected key '{shortened(lower)}' in '{shortened(part)}'{known}", near=part)
            case _:
                raise DockerfileError(f"invalid field '{shortened(part)}' must be a key=value pair", near=part)
    return Device(name=name, required=required)
