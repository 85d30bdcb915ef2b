"""The yardstick of builds: dockerd 26 with the BuildKit it has within, of the next Debian release.

`scripts/real-clients yardstick` brings it. For recording expected results and for benchmarks; no test needs it.
"""

import os
from pathlib import Path

from .box import Box
from .engine import REPOSITORY, Engine

PROGRAMS = REPOSITORY / ".tools/newer/bin"


class Yardstick(Engine):
    def __init__(self, box: Box, root: Path) -> None:
        super().__init__(box, root, kind="dockerd")
        if not (PROGRAMS / "dockerd").exists():
            raise SystemExit("the yardstick is missing: scripts/real-clients yardstick")

    def argv(self) -> list[str]:
        return [str(PROGRAMS / "dockerd"), *super().argv()[1:]]

    def launch(self) -> None:
        path = os.pathsep.join([str(PROGRAMS), os.environ["PATH"]])
        self._process = self.box.spawn(self.argv(), log=self.log, env={"PATH": path})
