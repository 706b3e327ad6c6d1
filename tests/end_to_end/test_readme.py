"""The README's commands, as they stand there, on real text."""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
from pathlib import Path

from tests.conftest import PATIENCE, REPOSITORY


def test_on_your_own_text(shared: Path, tmp_path: Path) -> None:
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    block = re.search(r"<!-- run by tests/end_to_end/test_readme\.py -->\n```bash\n(.*?)```", readme, re.DOTALL)
    assert block is not None
    with gzip.open(shared / "corpora/voice.train.en.gz", "rb") as source:
        (tmp_path / "english.txt").write_bytes(b"".join(next(source) for _ in range(2000)))
    with (
        gzip.open(shared / "corpora/voice.train.de.gz", "rb") as source,
        gzip.open(tmp_path / "german.txt.gz", "wb") as out,
    ):
        out.write(b"".join(next(source) for _ in range(2000)))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    result = subprocess.run(
        ["bash", "-euxc", block[1]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=environment,
        timeout=PATIENCE,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Es war einmal" in result.stdout
    assert "unigram" in result.stdout
    assert json.loads((tmp_path / "exported/config.json").read_text())["causal"] is True
    assert json.loads((tmp_path / "runs/first/status.json").read_text())["status"] == "finished"
    assert (tmp_path / "exported/README.md").is_file()
