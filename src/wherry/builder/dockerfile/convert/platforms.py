"""Arguments that tell a Dockerfile what it is built on and for; they need no ARG in the global scope."""

from collections.abc import Mapping

from wherry.spec.image import Platform

DEFAULT_STAGE = "default"  # TARGETSTAGE of a last stage without a name


def platform_arguments(
    *, build: Platform, target: Platform, stage: str, overrides: Mapping[str, str]
) -> dict[str, str]:
    """BUILD… is the machine that builds, TARGET… what the result runs on; `overrides` (--build-arg) replace them."""
    given = {
        **_described("BUILD", build),
        **_described("TARGET", target),
        "TARGETSTAGE": stage or DEFAULT_STAGE,
    }
    return {name: overrides.get(name, value) for name, value in given.items()}


def _described(prefix: str, platform: Platform) -> dict[str, str]:
    return {
        f"{prefix}PLATFORM": str(platform),
        f"{prefix}OS": platform.os,
        f"{prefix}OSVERSION": platform.os_version,
        f"{prefix}ARCH": platform.architecture,
        f"{prefix}VARIANT": platform.variant,
    }
