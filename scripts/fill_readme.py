"""Put real output into README.md and README.ko.md: the demo's transcript and the newest benchmark.

    make demo > FILE && .venv/bin/python scripts/fill_readme.py FILE

The places are marked in the files by comments, `<!-- transcript: begin -->` and so on.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def fill(text: str, place: str, content: str) -> str:
    pattern = rf"(<!-- {place}: begin -->\n).*?(<!-- {place}: end -->)"
    found, count = re.subn(pattern, lambda match: match[1] + content + match[2], text, flags=re.DOTALL)
    assert count == 1, f"no place for {place}"
    return found


def transcript(output: str) -> str:
    """From the first image on, with the demo's names made short."""
    lines = re.sub(r"\bdemo-\d+", "demo", output).splitlines()
    start = next(number for number, line in enumerate(lines) if "wherry image bootstrap" in line) - 1
    wanted = [line for line in lines[start:] if not line.startswith(("make", "real", "user", "sys"))]
    end = next(number for number, line in enumerate(wanted) if line.startswith("# Cleaned up"))
    return "```\n" + "\n".join(wanted[: end + 1]).strip() + "\n```\n"


def main() -> None:
    output = Path(sys.argv[1]).read_text()
    results = ROOT / "bench/results/latest.md"
    for name in ("README.md", "README.ko.md"):
        file = ROOT / name
        text = fill(file.read_text(), "transcript", transcript(output))
        if results.exists():
            text = fill(text, "bench", results.read_text())
        file.write_text(text)


main()
