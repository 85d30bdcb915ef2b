"""The flags of `build`: those of `docker build` and `docker buildx build`, and three of our own."""

from __future__ import annotations

from wherry.cli import run_values as check
from wherry.cli.flags import BOOL, BYTES, INT, LIST, MEMORY_SWAP, STRING, STRINGS, Flag

CALLS = {
    "build": "",
    "check": "frontend.lint",
    "lint": "frontend.lint",
    "outline": "frontend.outline",
    "targets": "frontend.targets",
    "subrequests.describe": "frontend.subrequests.describe",
}
PROGRESSES = ("auto", "plain", "tty", "quiet", "none", "rawjson")


def call(text: str) -> str:
    """`check`, or `check,format=json`; what it is called is checked, the rest kept."""
    name = text.partition(",")[0]
    if name not in CALLS:
        raise ValueError(f"must be one of {', '.join(name for name in CALLS if name != 'lint')}")
    return text


def progress(text: str) -> str:
    if text not in PROGRESSES:
        raise ValueError(f"must be one of {', '.join(PROGRESSES)}")
    return text


def on_error(text: str) -> str:
    if text not in ("", "shell"):
        raise ValueError("must be shell")
    return text


BUILD_FLAGS = (
    Flag("add-host", "", LIST, 'Add a custom host-to-IP mapping (format: "host:ip")', check=check.extra_host),
    Flag(
        "allow", "", STRINGS, 'Allow extra privileged entitlement (e.g., "network.host", "security.insecure", "device")'
    ),
    Flag("annotation", "", LIST, "Add annotation to the image"),
    Flag("attest", "", LIST, 'Attestation parameters (format: "type=sbom,generator=image")'),
    Flag("build-arg", "", LIST, "Set build-time variables"),
    Flag("build-context", "", LIST, "Additional build contexts (e.g., name=path)"),
    Flag("cache-from", "", LIST, 'External cache sources (e.g., "user/app:cache", "type=local,src=path/to/dir")'),
    Flag("cache-to", "", LIST, 'Cache export destinations (e.g., "user/app:cache", "type=local,dest=path/to/dir")'),
    Flag("call", "", STRING, 'Set method for evaluating build ("check", "outline", "targets")', check=call),
    Flag("cgroup-parent", "", STRING, 'Set the parent cgroup for the "RUN" instructions during build'),
    Flag("check", "", BOOL, 'Shorthand for "--call=check"'),
    Flag("compress", "", BOOL, "Compress the build context using gzip", hidden=True),
    Flag("cpu-period", "", INT, "Limit the CPU CFS (Completely Fair Scheduler) period"),
    Flag("cpu-quota", "", INT, "Limit the CPU CFS (Completely Fair Scheduler) quota"),
    Flag("cpu-shares", "c", INT, "CPU shares (relative weight)"),
    Flag("cpuset-cpus", "", STRING, "CPUs in which to allow execution (0-3, 0,1)"),
    Flag("cpuset-mems", "", STRING, "MEMs in which to allow execution (0-3, 0,1)"),
    Flag("disable-content-trust", "", BOOL, "Skip image verification", default=True, hidden=True),
    Flag("file", "f", STRING, 'Name of the Dockerfile (default: "PATH/Dockerfile")'),
    Flag("force-rm", "", BOOL, "Always remove intermediate containers", hidden=True),
    Flag("iidfile", "", STRING, "Write the image ID to the file"),
    Flag("isolation", "", STRING, "Container isolation technology", hidden=True),
    Flag("label", "", LIST, "Set metadata for an image", check=check.label),
    Flag("load", "", BOOL, "Keep the result as an image of the engine, which is what happens anyway"),
    Flag("memory", "m", BYTES, "Memory limit"),
    Flag("memory-swap", "", MEMORY_SWAP, "Swap limit equal to memory plus swap: -1 to enable unlimited swap"),
    Flag("metadata-file", "", STRING, "Write build result metadata to the file"),
    Flag("network", "", STRING, 'Set the networking mode for the "RUN" instructions during build', default="default"),
    Flag("no-cache", "", BOOL, "Do not use cache when building the image"),
    Flag("no-cache-filter", "", STRINGS, "Do not cache specified stages"),
    Flag("on-error", "", STRING, "What to do when a step fails: `shell` opens one in its container", check=on_error),
    Flag("output", "o", LIST, 'Output destination (format: "type=local,dest=path")'),
    Flag("platform", "", STRINGS, "Set target platform for build"),
    Flag(
        "progress",
        "",
        STRING,
        'Set type of progress output ("auto", "plain", "tty", "quiet", "rawjson")',
        default="auto",
        check=progress,
    ),
    Flag("provenance", "", STRING, 'Shorthand for "--attest=type=provenance"'),
    Flag("pull", "", BOOL, "Always attempt to pull all referenced images"),
    Flag("push", "", BOOL, 'Shorthand for "--output=type=registry"'),
    Flag("quiet", "q", BOOL, "Suppress the build output and print image ID on success"),
    Flag("rm", "", BOOL, "Remove intermediate containers after a successful build", default=True, hidden=True),
    Flag("sbom", "", STRING, 'Shorthand for "--attest=type=sbom"'),
    Flag("secret", "", LIST, 'Secret to expose to the build (format: "id=mysecret[,src=/local/secret]")'),
    Flag("shm-size", "", BYTES, "Shared memory size for build containers"),
    Flag("squash", "", BOOL, "Squash newly built layers into a single new layer"),
    Flag(
        "ssh",
        "",
        LIST,
        'SSH agent socket or keys to expose to the build (format: "default|<id>[=<socket>|<key>[,<key>]]")',
    ),
    Flag("tag", "t", LIST, 'Name and optionally a tag (format: "name:tag")'),
    Flag("target", "", STRING, "Set the target build stage to build"),
    Flag("ulimit", "", LIST, "Ulimit options", shown="ulimit", check=lambda text: _ulimit(text)),
    Flag("verify", "", BOOL, "Build twice without cache, and show how the results differ"),
)


def _ulimit(text: str) -> str:
    """Kept as it is typed once it is found to be one."""
    check.ulimit(text)
    return text
