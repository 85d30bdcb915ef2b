"""Every command by name: the module it lives in, its key there, and the line about it.

The group forms (`container ls`) are the commands; the short forms (`ps`) are the same entries under another name.
"""

from __future__ import annotations


class Entry:
    __slots__ = ("key", "module", "summary")

    def __init__(self, module: str, key: str, summary: str) -> None:
        self.module = module
        self.key = key
        self.summary = summary


class Group:
    __slots__ = ("commands", "summary")

    def __init__(self, summary: str, commands: dict[str, Entry]) -> None:
        self.summary = summary
        self.commands = commands


_ATTACH = Entry("attach", "attach", "Attach local standard input, output, and error streams to a running container")
_BUILD = Entry("build", "build", "Build an image from a Dockerfile")
_COMMIT = Entry("commit", "commit", "Create a new image from a container's changes")
_CP = Entry("cp", "cp", "Copy files/folders between a container and the local filesystem")
_CREATE = Entry("run", "create", "Create a new container")
_DIFF = Entry("files", "diff", "Inspect changes to files or directories on a container's filesystem")
_EVENTS = Entry("events", "events", "Get real time events from the server")
_EXEC = Entry("exec", "exec", "Execute a command in a running container")
_EXPORT = Entry("files", "export", "Export a container's filesystem as a tar archive")
_HISTORY = Entry("history", "history", "Show the history of an image")
_IMAGES = Entry("images", "images", "List images")
_IMPORT = Entry("archive", "import", "Import the contents from a tarball to create a filesystem image")
_INFO = Entry("info", "info", "Display system-wide information")
_KILL = Entry("lifecycle", "kill", "Kill one or more running containers")
_LOAD = Entry("archive", "load", "Load an image from a tar archive or STDIN")
_LOGS = Entry("logs", "logs", "Fetch the logs of a container")
_PAUSE = Entry("lifecycle", "pause", "Pause all processes within one or more containers")
_PORT = Entry("port", "port", "List port mappings or a specific mapping for the container")
_PS = Entry("ps", "ps", "List containers")
_PULL = Entry("pull", "pull", "Download an image from a registry")
_PUSH = Entry("push", "push", "Upload an image to a registry")
_RENAME = Entry("lifecycle", "rename", "Rename a container")
_RESTART = Entry("lifecycle", "restart", "Restart one or more containers")
_RM = Entry("rm", "rm", "Remove one or more containers")
_RMI = Entry("rmi", "rmi", "Remove one or more images")
_RUN = Entry("run", "run", "Create and run a new container from an image")
_SAVE = Entry("archive", "save", "Save one or more images to a tar archive (streamed to STDOUT by default)")
_START = Entry("start", "start", "Start one or more stopped containers")
_STATS = Entry("stats", "stats", "Display a live stream of container(s) resource usage statistics")
_STOP = Entry("lifecycle", "stop", "Stop one or more running containers")
_TAG = Entry("rmi", "tag", "Create a tag TARGET_IMAGE that refers to SOURCE_IMAGE")
_TOP = Entry("top", "top", "Display the running processes of a container")
_UNPAUSE = Entry("lifecycle", "unpause", "Unpause all processes within one or more containers")
_UPDATE = Entry("update", "update", "Update configuration of one or more containers")
_WAIT = Entry("lifecycle", "wait", "Block until one or more containers stop, then print their exit codes")

COMMON: dict[str, Entry] = {
    "run": _RUN,
    "exec": _EXEC,
    "ps": _PS,
    "build": _BUILD,
    "pull": _PULL,
    "push": _PUSH,
    "images": _IMAGES,
    "login": Entry("login", "login", "Authenticate to a registry"),
    "logout": Entry("login", "logout", "Log out from a registry"),
    "search": Entry("search", "search", "Search Docker Hub for images"),
    "version": Entry("version", "version", "Show the Wherry version information"),
    "info": _INFO,
}

OTHERS: dict[str, Entry] = {
    "attach": _ATTACH,
    "commit": _COMMIT,
    "cp": _CP,
    "create": _CREATE,
    "diff": _DIFF,
    "events": _EVENTS,
    "export": _EXPORT,
    "history": _HISTORY,
    "import": _IMPORT,
    "inspect": Entry("inspect", "inspect", "Return low-level information on Wherry objects"),
    "kill": _KILL,
    "load": _LOAD,
    "logs": _LOGS,
    "pause": _PAUSE,
    "port": _PORT,
    "rename": _RENAME,
    "restart": _RESTART,
    "rm": _RM,
    "rmi": _RMI,
    "save": _SAVE,
    "start": _START,
    "stats": _STATS,
    "stop": _STOP,
    "tag": _TAG,
    "top": _TOP,
    "unpause": _UNPAUSE,
    "update": _UPDATE,
    "wait": _WAIT,
}

GROUPS: dict[str, Group] = {
    "builder": Group(
        "Manage builds",
        {
            "build": _BUILD,
            "du": Entry("builder", "du", "Show what builds keep on disk"),
            "prune": Entry("builder", "prune", "Remove build cache"),
        },
    ),
    "builds": Group(
        "Look at what was built",
        {
            "explain": Entry("builds", "explain", "Say why each step of a build ran, or did not"),
            "inspect": Entry("builds", "inspect", "Display detailed information on one or more builds"),
            "logs": Entry("builds", "logs", "Fetch the log of a build, all of it"),
            "ls": Entry("builds", "ls", "List builds"),
            "rm": Entry("builds", "rm", "Remove the records of one or more builds"),
        },
    ),
    "container": Group(
        "Manage containers",
        {
            "attach": _ATTACH,
            "commit": _COMMIT,
            "cp": _CP,
            "create": _CREATE,
            "diff": _DIFF,
            "exec": _EXEC,
            "export": _EXPORT,
            "inspect": Entry("inspect", "container", "Display detailed information on one or more containers"),
            "kill": _KILL,
            "logs": _LOGS,
            "ls": _PS,
            "pause": _PAUSE,
            "port": _PORT,
            "prune": Entry("prune", "container", "Remove all stopped containers"),
            "rename": _RENAME,
            "restart": _RESTART,
            "rm": _RM,
            "run": _RUN,
            "start": _START,
            "stats": _STATS,
            "stop": _STOP,
            "top": _TOP,
            "unpause": _UNPAUSE,
            "update": _UPDATE,
            "wait": _WAIT,
        },
    ),
    "image": Group(
        "Manage images",
        {
            "bootstrap": Entry("bootstrap", "bootstrap", "Make a base image from this machine's packages"),
            "build": _BUILD,
            "convert": Entry("convert", "convert", "Make an image whose layers are compressed another way"),
            "history": _HISTORY,
            "import": _IMPORT,
            "inspect": Entry("inspect", "image", "Display detailed information on one or more images"),
            "load": _LOAD,
            "ls": _IMAGES,
            "prune": Entry("prune", "image", "Remove unused images"),
            "pull": _PULL,
            "push": _PUSH,
            "rm": _RMI,
            "save": _SAVE,
            "tag": _TAG,
        },
    ),
    "manifest": Group(
        "Manage image manifests and manifest lists",
        {
            "annotate": Entry("manifest", "annotate", "Add additional information to a local image manifest"),
            "create": Entry(
                "manifest", "create", "Create a local manifest list for annotating and pushing to a registry"
            ),
            "inspect": Entry("manifest", "inspect", "Display an image manifest, or manifest list"),
            "push": Entry("manifest", "push", "Push a manifest list to a repository"),
            "rm": Entry("manifest", "rm", "Delete one or more manifest lists from local storage"),
        },
    ),
    "network": Group(
        "Manage networks",
        {
            "capture": Entry("network_lab", "capture", "Capture the packets of a container"),
            "connect": Entry("network", "connect", "Connect a container to a network"),
            "create": Entry("network", "create", "Create a network"),
            "disconnect": Entry("network", "disconnect", "Disconnect a container from a network"),
            "inspect": Entry("inspect", "network", "Display detailed information on one or more networks"),
            "lab": Entry("network_lab", "lab", "Put latency, loss or a partition on a container's link"),
            "ls": Entry("network", "ls", "List networks"),
            "prune": Entry("prune", "network", "Remove all unused networks"),
            "rm": Entry("network", "rm", "Remove one or more networks"),
        },
    ),
    "system": Group(
        "Manage Wherry",
        {
            "check": Entry("check", "check", "Find and mend damage in the store of images"),
            "df": Entry("df", "df", "Show disk usage"),
            "events": _EVENTS,
            "info": _INFO,
            "prune": Entry("prune", "system", "Remove unused data"),
        },
    ),
    "volume": Group(
        "Manage volumes",
        {
            "clone": Entry("volume_whole", "clone", "Make a new volume with the content of another"),
            "create": Entry("volume", "create", "Create a volume"),
            "export": Entry("volume_whole", "export", "Export a volume's content as a tar archive"),
            "import": Entry("volume_whole", "import", "Make a volume of a tar archive"),
            "inspect": Entry("inspect", "volume", "Display detailed information on one or more volumes"),
            "ls": Entry("volume", "ls", "List volumes"),
            "prune": Entry("prune", "volume", "Remove unused local volumes"),
            "pull": Entry("volume_whole", "pull", "Make a volume of what a registry has"),
            "push": Entry("volume_whole", "push", "Push a volume's content to a registry"),
            "rename": Entry("volume_whole", "rename", "Rename a volume that no container uses"),
            "rm": Entry(
                "volume",
                "rm",
                "Remove one or more volumes. You cannot remove a volume that is in use by a container.",
            ),
            "rollback": Entry("volume_whole", "rollback", "Bring back a volume's content from a snapshot"),
            "snapshot": Entry("volume_whole", "snapshot", "Keep a volume's content as it is; list and drop snapshots"),
            "update": Entry("volume", "update", "Update a volume (cluster volumes only)"),
        },
    ),
}

# commands of other rooms, which read their own command lines: by name, and imported only when they run
SERVERS = {
    "daemon": ("wherry.daemon.main", "Run the engine (see wherry daemon --help)"),
    "registry": ("wherry.registry.main", "Run a registry (see wherry registry --help)"),
}

# second names of a group's commands
ALIASES = {
    "builds": {"history": "ls", "list": "ls", "remove": "rm"},
    "container": {"list": "ls", "ps": "ls", "remove": "rm"},
    "image": {"list": "ls", "remove": "rm"},
    "network": {"list": "ls", "remove": "rm"},
    "volume": {"list": "ls", "remove": "rm"},
}


def find_top(name: str) -> Entry | None:
    return COMMON.get(name) or OTHERS.get(name)


def find_in_group(group: str, name: str) -> tuple[str, Entry] | None:
    """The command and its first name."""
    name = ALIASES.get(group, {}).get(name, name)
    entry = GROUPS[group].commands.get(name)
    return (name, entry) if entry else None


def names_of(entry: Entry) -> list[str]:
    """Every path that leads to the command, as help lists them."""
    paths: list[str] = []
    for name, group in GROUPS.items():
        for command, other in group.commands.items():
            if other is entry:
                paths.append(f"{name} {command}")
                paths.extend(f"{name} {alias}" for alias, real in ALIASES.get(name, {}).items() if real == command)
    paths.extend(name for name in (*COMMON, *OTHERS) if find_top(name) is entry)
    return paths


def top_names() -> list[str]:
    return [*COMMON, *GROUPS, *OTHERS, *SERVERS, "help"]
