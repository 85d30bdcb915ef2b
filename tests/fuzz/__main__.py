"""`python -m fuzz [SECONDS [TARGET...]]`, in `tests/`: fuzz each target for so long, from its corpus.

An input that breaks a target is written beside the corpus as crash-…, and the command fails. What is worth keeping of
a run joins the corpus: inputs that reached code which none before them had reached.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
CORPUS = HERE / "corpus"
MAX_INPUT = 8192  # bytes
KEPT = 88 << 10  # bytes of the corpus of one target

_CHILD = """
import sys
import atheris
with atheris.instrument_imports(include=["wherry"]):
    from fuzz.targets import run
name = sys.argv.pop(1)
atheris.Setup(sys.argv, lambda data: run(name, data))
atheris.Fuzz()
"""


def fuzz(name: str, seconds: int) -> bool:
    """False when something was found."""
    known = CORPUS / name
    known.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="wherry-fuzz-") as found:
        options = [f"-max_len={MAX_INPUT}", "-rss_limit_mb=1024", "-timeout=20", f"-max_total_time={seconds}"]
        command = [sys.executable, "-c", _CHILD, name, *options, f"-artifact_prefix={known}/", found, str(known)]
        print(f"--- {name}", flush=True)
        if subprocess.run(command, cwd=HERE.parent, check=False).returncode:
            return False
        keep(known, Path(found))
    return True


def keep(known: Path, found: Path) -> None:
    """Inputs that reached new code, the smallest first, as many as there is room for."""
    room = KEPT - sum(path.stat().st_size for path in known.iterdir())
    there = {path.read_bytes() for path in known.iterdir()}
    for path in sorted(found.iterdir(), key=lambda path: path.stat().st_size):
        room -= path.stat().st_size
        if room < 0:
            break
        if path.read_bytes() not in there:
            shutil.copy(path, known / path.name[:16])


def main() -> None:
    from fuzz.targets import TARGETS

    seconds = int(sys.argv[1]) if len(sys.argv) > 1 else 60
    broken = [name for name in sys.argv[2:] or TARGETS if not fuzz(name, seconds)]
    if broken:
        sys.exit(f"broken: {', '.join(broken)}; the inputs are tests/fuzz/corpus/*/crash-*")


if __name__ == "__main__":
    main()
