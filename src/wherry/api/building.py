"""The endpoints of builds. Their code is loaded by the first request: many a daemon never builds."""

from wherry.api.router import Router, later

CLASSIC, DOOR, RECORDS = "wherry.api.build", "wherry.api.build_door", "wherry.api.builds"


def add(router: Router) -> None:
    router.add("POST", "/build", later(CLASSIC, "build"))
    router.add("POST", "/build/cancel", later(CLASSIC, "cancel"))
    router.add("POST", "/build/prune", later(CLASSIC, "prune"))
    router.add("POST", "/builds", later(DOOR, "open_door"))
    router.add("GET", "/builds", later(RECORDS, "list_"))
    router.add("GET", "/builds/{id}/logs", later(RECORDS, "logs"))
    router.add("GET", "/builds/{id}/explain", later(RECORDS, "explain_"))
    router.add("GET", "/builds/{id}", later(RECORDS, "inspect"))
    router.add("DELETE", "/builds/{id}", later(RECORDS, "remove"))
