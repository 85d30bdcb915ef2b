"""The values of `run`'s flags: from one argument to what the API takes, or ValueError in docker's words."""

from __future__ import annotations

import os

from wherry.cli.units import parse_bool, parse_int, parse_size, parse_uint

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    JSONObject = dict[str, Any]

SYSCTLS = frozenset({
    "kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall", "kernel.shmmax", "kernel.shmmni",
    "kernel.shm_rmid_forced",
})  # fmt: skip
SYSCTL_PREFIXES = ("net.", "fs.mqueue.")
ULIMITS = frozenset(
    "core cpu data fsize locks memlock msgqueue nice nofile nproc rss rtprio rttime sigpending stack".split()
)
AF_INET, AF_INET6 = 2, 10


def is_ip(text: str) -> bool:
    import _socket

    for family in (AF_INET, AF_INET6):
        try:
            _socket.inet_pton(family, text)
        except (OSError, UnicodeError):
            continue
        return "%" not in text
    return False


def split_csv(text: str) -> list[str]:
    """Fields separated by commas; one in double quotes may hold commas, and "" for a quote."""
    fields: list[str] = []
    at = 0
    while True:
        if text[at : at + 1] == '"':
            field, at = _quoted_field(text, at + 1)
        else:
            stop = text.find(",", at)
            stop = len(text) if stop < 0 else stop
            field, at = text[at:stop], stop
            if '"' in field:
                raise ValueError(f'parse error on line 1, column {at + 1}: bare " in non-quoted-field')
        fields.append(field)
        if at >= len(text):
            return fields
        at += 1


def _quoted_field(text: str, at: int) -> tuple[str, int]:
    field = ""
    while True:
        stop = text.find('"', at)
        if stop < 0:
            raise ValueError(f'parse error on line 1, column {len(text) + 1}: extraneous or missing " in quoted-field')
        field += text[at:stop]
        at = stop + 1
        if text[at : at + 1] == '"':
            field += '"'
            at += 1
        elif at >= len(text) or text[at] == ",":
            return field, at
        else:
            raise ValueError(f'parse error on line 1, column {at}: extraneous or missing " in quoted-field')


def attach(text: str) -> str:
    lower = text.lower()
    if lower not in ("stdin", "stdout", "stderr"):
        raise ValueError("valid streams are STDIN, STDOUT and STDERR")
    return lower


def environment_variable(text: str) -> str:
    """`NAME=value`, or `NAME` with the value it has here; kept as it is when it has none."""
    name, equals, _ = text.partition("=")
    if not name:
        raise ValueError(f"invalid environment variable: {text}")
    if equals or name not in os.environ:
        return text
    return f"{name}={os.environ[name]}"


def label(text: str) -> str:
    if not text.partition("=")[0].strip():
        raise ValueError(f"invalid label '{text}': empty name")
    return text


def extra_host(text: str) -> str:
    separator = "=" if "=" in text else ":"
    name, found, address = text.partition(separator)
    if not found or not name:
        raise ValueError(f'bad format for add-host: "{text}"')
    if address.startswith("[") and address.endswith("]"):
        address = address[1:-1]
    if address != "host-gateway" and not is_ip(address):
        raise ValueError(f'invalid IP address in add-host: "{address}"')
    return f"{name}:{address}"


def ip_address(text: str) -> str:
    if not is_ip(text.strip()):
        raise ValueError(f"IP address is not correctly formatted: {text}")
    return text.strip()


def dns_search(text: str) -> str:
    domain = text.strip(" ")
    if domain == ".":
        return domain
    labels = domain.rstrip(".").split(".")
    for part in labels:
        if not part or len(part) > 63 or not part.replace("-", "").replace("_", "").isalnum() or part.startswith("-"):
            raise ValueError(f"{text} is not a valid domain")
    return domain


def link(text: str) -> str:
    if not text:
        raise ValueError("empty string specified for links")
    parts = text.split(":")
    if len(parts) > 2:
        raise ValueError(f"bad format for links: {text}")
    return text


def sysctl(text: str) -> str:
    name = text.partition("=")[0]
    if "=" not in text or not (name in SYSCTLS or name.startswith(SYSCTL_PREFIXES)):
        raise ValueError(f"sysctl '{text}' is not allowed")
    return text


def ulimit(text: str) -> JSONObject:
    name, equals, limits = text.partition("=")
    if not equals:
        raise ValueError(f"invalid ulimit argument: {text}")
    if name not in ULIMITS:
        raise ValueError(f"invalid ulimit type: {name}")
    values = limits.split(":")
    if len(values) > 2:
        raise ValueError(f"too many limit values - {limits}, can only have up to two, `soft[:hard]`")
    soft = parse_int(values[0])
    hard = parse_int(values[1]) if len(values) > 1 else soft
    if hard != -1 and (soft == -1 or soft > hard):
        raise ValueError(f"ulimit soft limit must be less than or equal to hard limit: {soft} > {hard}")
    return {"Name": name, "Soft": soft, "Hard": hard}


def weight_device(text: str) -> JSONObject:
    path, weight = _device_value(text)
    try:
        number = parse_uint(weight, bits=16)
    except ValueError:
        number = -1
    if number != 0 and not 10 <= number <= 1000:
        raise ValueError(f"invalid weight for device: {text}")
    return {"Path": path, "Weight": number}


def _device_value(text: str) -> tuple[str, str]:
    path, colon, value = text.partition(":")
    if not colon or ":" in value:
        raise ValueError(f"bad format: {text}")
    if not path.startswith("/dev/"):
        raise ValueError(f"bad format for device path: {text}")
    return path, value


def throttle_bytes(text: str) -> JSONObject:
    path, rate = _device_value(text)
    message = (
        f"invalid rate for device: {text}. The correct format is <device-path>:<number>[<unit>]. "
        "Number must be a positive integer. Unit is optional and can be kb, mb, or gb"
    )
    try:
        size = parse_size(rate)
    except ValueError:
        raise ValueError(message) from None
    return {"Path": path, "Rate": size}


def throttle_operations(text: str) -> JSONObject:
    path, rate = _device_value(text)
    try:
        return {"Path": path, "Rate": parse_uint(rate)}
    except ValueError:
        raise ValueError(
            f"invalid rate for device: {text}. The correct format is <device-path>:<number>. "
            "Number must be a positive integer"
        ) from None


def device_path(text: str) -> str:
    """`host[:container[:mode]]`, or a CDI name, checked again when the body is built."""
    if is_cdi_name(text):
        return text
    parts = text.split(":")
    if len(parts) > 3 or not parts[0]:
        raise ValueError(f"bad format for path: {text}")
    container = parts[1] if len(parts) > 1 and not (len(parts) == 2 and is_device_mode(parts[1])) else parts[0]
    if not container.startswith("/"):
        raise ValueError(f"{container} is not an absolute path")
    return text


def is_cdi_name(text: str) -> bool:
    """`vendor.com/class=device`"""
    kind, equals, device = text.partition("=")
    return bool(equals and device) and "/" in kind and not text.startswith("/")


def is_device_mode(text: str) -> bool:
    return bool(text) and set(text) <= set("rwm") and len(set(text)) == len(text)


def device_rule(text: str) -> str:
    words = text.split(" ")
    if len(words) == 3 and words[0] in ("a", "b", "c") and ":" in words[1] and words[2] and set(words[2]) <= set("rwm"):
        numbers = words[1].split(":")
        if len(numbers) == 2 and all(number == "*" or number.isdigit() for number in numbers):
            return text
    raise ValueError(f"invalid device cgroup format '{text}'")


def gpus(text: str) -> JSONObject:
    request: JSONObject = {"Driver": "", "Count": 0, "DeviceIDs": None, "Capabilities": [["gpu"]], "Options": {}}
    seen: set[str] = set()
    for field in split_csv(text):
        key, equals, value = field.partition("=")
        if key in seen:
            raise ValueError(f"gpu request key '{key}' can be specified only once")
        if not equals:
            seen.add("count")
            request["Count"] = _gpu_count(key)
            continue
        seen.add(key)
        if key == "driver":
            request["Driver"] = value
        elif key == "count":
            request["Count"] = _gpu_count(value)
        elif key == "device":
            request["DeviceIDs"] = value.split(",")
        elif key == "capabilities":
            request["Capabilities"] = [[*value.split(","), "gpu"]]
        elif key == "options":
            request["Options"] = dict(item.partition("=")[::2] for item in split_csv(value))
        else:
            raise ValueError(f"unexpected key '{key}' in '{field}'")
    if "count" not in seen and request["DeviceIDs"] is None:
        request["Count"] = 1
    return request


def _gpu_count(text: str) -> int:
    if text == "all":
        return -1
    try:
        return parse_int(text)
    except ValueError:
        raise ValueError(f'invalid count ({text}): value must be either "all" or an integer: invalid syntax') from None


def network(text: str) -> JSONObject:
    """A network's name, or `name=…,alias=…,ip=…`, as {"Target", "Aliases", "IPv4Address", …}."""
    wanted: JSONObject = {"Target": "", "Aliases": [], "DriverOpts": {}}
    if "=" not in text.partition(",")[0]:
        wanted["Target"] = text
        return wanted
    for field in split_csv(text):
        key, equals, value = field.partition("=")
        key, value = key.strip().lower(), value.strip()
        if not equals:
            raise ValueError(f"invalid field {field}")
        if key == "name":
            wanted["Target"] = value
        elif key == "alias":
            wanted["Aliases"].append(value)
        elif key == "ip":
            wanted["IPv4Address"] = value
        elif key == "ip6":
            wanted["IPv6Address"] = value
        elif key == "mac-address":
            wanted["MacAddress"] = value
        elif key == "link-local-ip":
            wanted.setdefault("LinkLocalIPs", []).append(value)
        elif key == "driver-opt":
            name, found, option = value.partition("=")
            if not found:
                raise ValueError("invalid key value pair format in driver options")
            wanted["DriverOpts"][name] = option
        elif key == "gw-priority":
            try:
                wanted["GwPriority"] = parse_int(value)
            except ValueError:
                raise ValueError(f"invalid gw-priority ({value}): invalid syntax") from None
        else:
            raise ValueError(f"invalid field key {key}")
    if not wanted["Target"]:
        raise ValueError("network name/id is not specified")
    return wanted


def mac_address(text: str) -> str:
    """`92:d0:c6:0a:29:33` of that, of `92-d0-…` or of `92d0.c60a.2933`."""
    separator, width = (".", 4) if "." in text else ("-" if "-" in text else ":", 2)
    groups = text.split(separator)
    if len(groups) * width in (12, 16) and all(len(group) == width for group in groups):
        try:
            return bytes.fromhex("".join(groups)).hex(":")
        except ValueError:
            pass
    raise ValueError(f"{text} is not a valid mac address")


_MOUNT_GROUPS = {"bind": "BindOptions", "volume": "VolumeOptions", "image": "ImageOptions", "tmpfs": "TmpfsOptions"}


def mount(text: str) -> JSONObject:
    """`type=bind,source=/a,target=/b,readonly` as the API's Mount."""
    found: JSONObject = {"Type": "volume"}
    for field in split_csv(text.strip()):
        key, equals, value = field.partition("=")
        key = key.strip().lower()
        if not equals:
            if key == "idmap":
                value = "caller"
            elif key in ("readonly", "ro", "volume-nocopy", "bind-nonrecursive", "bind-create-src"):
                value = "true"
            else:
                raise ValueError(f"invalid field '{field}' must be a key=value pair")
        _mount_field(found, key, value, field)
    _check_mount(found)
    return found


def _options(found: JSONObject, group: str) -> JSONObject:
    options: JSONObject = found.setdefault(group, {})
    return options


def _mount_bool(key: str, value: str) -> bool:
    try:
        return parse_bool(value)
    except ValueError:
        raise ValueError(f"invalid value for {key}: {value}") from None


def _mount_field(found: JSONObject, key: str, value: str, field: str) -> None:
    if key == "type":
        found["Type"] = value.lower()
    elif key in ("source", "src"):
        relative = value.startswith(("./", "../")) or value == "."
        found["Source"] = os.path.abspath(value) if relative else value
    elif key in ("target", "dst", "destination"):
        found["Target"] = value
    elif key in ("readonly", "ro"):
        found["ReadOnly"] = _mount_bool(key, value)
    elif key == "consistency":
        found["Consistency"] = value.lower()
    elif key == "bind-propagation":
        _options(found, "BindOptions")["Propagation"] = value.lower()
    elif key == "bind-nonrecursive":
        _options(found, "BindOptions")["NonRecursive"] = _mount_bool(key, value)
    elif key == "bind-create-src":
        _options(found, "BindOptions")["CreateMountpoint"] = _mount_bool(key, value)
    elif key == "bind-recursive":
        _bind_recursive(found, value)
    elif key == "idmap":
        _options(found, "BindOptions")["IDMap"] = id_map(value)
    elif key == "volume-subpath":
        _options(found, "VolumeOptions")["Subpath"] = value
    elif key == "volume-nocopy":
        _options(found, "VolumeOptions")["NoCopy"] = _mount_bool(key, value)
    elif key == "volume-label":
        name, _, content = value.partition("=")
        _options(found, "VolumeOptions").setdefault("Labels", {})[name] = content
    elif key == "volume-driver":
        _options(found, "VolumeOptions").setdefault("DriverConfig", {})["Name"] = value
    elif key == "volume-opt":
        name, _, content = value.partition("=")
        driver = _options(found, "VolumeOptions").setdefault("DriverConfig", {})
        driver.setdefault("Options", {})[name] = content
    elif key == "image-subpath":
        _options(found, "ImageOptions")["Subpath"] = value
    elif key == "tmpfs-size":
        try:
            _options(found, "TmpfsOptions")["SizeBytes"] = parse_size(value)
        except ValueError:
            raise ValueError(f"invalid value for {key}: {value}") from None
    elif key == "tmpfs-options":
        options = _options(found, "TmpfsOptions").setdefault("Options", [])
        options.extend([name, content] if equals else [name] for name, equals, content in _each_option(value))
    elif key == "tmpfs-mode":
        try:
            _options(found, "TmpfsOptions")["Mode"] = int(value, 8)
        except ValueError:
            raise ValueError(f"invalid value for {key}: {value}") from None
    else:
        raise ValueError(f"unexpected key '{key}' in '{field}'")


def _each_option(text: str) -> list[tuple[str, str, str]]:
    """`a=1;b`: the comma separates the fields of the whole."""
    return [part.partition("=") for part in text.replace(";", ",").split(",") if part]


def id_map(text: str) -> str:
    """`caller` as the daemon understands it wherever it is: with the ids of who calls, of who called sudo if so."""
    if text != "caller":
        return text
    uid, gid = os.getuid(), os.getgid()
    if uid == 0:
        before = os.environ.get("SUDO_UID", ""), os.environ.get("SUDO_GID", "")
        if before[0].isdigit() and before[1].isdigit():
            uid, gid = int(before[0]), int(before[1])
    return f"caller={uid}-{gid}"


def _bind_recursive(found: JSONObject, value: str) -> None:
    options = _options(found, "BindOptions")
    if value == "enabled":
        return
    if value == "disabled":
        options["NonRecursive"] = True
    elif value == "writable":
        options["ReadOnlyNonRecursive"] = True
    elif value == "readonly":
        options["ReadOnlyForceRecursive"] = True
    else:
        raise ValueError(
            f'invalid value for bind-recursive: {value} (must be "enabled", "disabled", "writable", or "readonly")'
        )


def _check_mount(found: JSONObject) -> None:
    kind = found["Type"]
    if not kind:
        raise ValueError("type is required")
    if not found.get("Target"):
        raise ValueError("target is required")
    for prefix, group in _MOUNT_GROUPS.items():
        if group in found and kind != prefix:
            raise ValueError(f"cannot mix '{prefix}-*' options with mount type '{kind}'")
    binding = found.get("BindOptions", {})
    if binding.get("ReadOnlyNonRecursive") and not found.get("ReadOnly"):
        raise ValueError("option 'bind-recursive=writable' requires 'readonly' to be specified in conjunction")
    if binding.get("ReadOnlyForceRecursive"):
        if not found.get("ReadOnly"):
            raise ValueError("option 'bind-recursive=readonly' requires 'readonly' to be specified in conjunction")
        if binding.get("Propagation") != "rprivate":
            raise ValueError(
                "option 'bind-recursive=readonly' requires 'bind-propagation=rprivate' to be specified in conjunction"
            )
