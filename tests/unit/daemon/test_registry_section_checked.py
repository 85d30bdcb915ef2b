"""A registry section that cannot work is told before anything is started, by --validate too."""

import json
from pathlib import Path

import pytest

from wherry.daemon.main import main


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"listn": []}, "no such configuration: listn (did you mean listen?)"),
        ({"root": "/x"}, "root: the engine's own; leave it out"),
        ({"quota": {"total": "much"}}, "quota: invalid size 'much'"),
    ],
)
def test_a_registry_section_that_cannot_work_is_refused_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], section: dict[str, object], words: str
) -> None:
    file = tmp_path / "daemon.json"
    file.write_text(json.dumps({"registry": section}))
    assert main(["--validate", "--config-file", str(file)]) == 1
    assert words in capsys.readouterr().err


def test_a_registry_section_that_can_work_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "daemon.json"
    file.write_text(json.dumps({"registry": {"listen": ["127.0.0.1:5000"]}}))
    assert main(["--validate", "--config-file", str(file)]) == 0
    assert "configuration OK" in capsys.readouterr().out
