"""Files of containers: archive (`docker cp`), export, changes (`docker diff`)."""

from wherry.api.missing import not_yet
from wherry.api.router import Router


def add(router: Router) -> None:
    copying = not_yet("copying files from and to containers")
    for method in ("HEAD", "GET", "PUT"):
        router.add(method, "/containers/{name}/archive", copying)
    router.add("GET", "/containers/{name}/export", not_yet("exporting containers"))
    router.add("GET", "/containers/{name}/changes", not_yet("comparing containers with their images"))
