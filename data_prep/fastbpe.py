"""The real fastBPE (the C++ tool of the original's recipe): fetched, checked, built, found.

`python -m data_prep.fastbpe` (which `make fastbpe` runs) puts it beside the Python it runs under. Installed
as a Python package it could only apply codes; the `main.cc` in the package's source archive is the whole
tool, and needs a C++ compiler and nothing else.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from xlm_train.runtime.errors import UserError
from xlm_train.runtime.files import sha256_of

VERSION = "0.1.0"
ARCHIVE = f"fastBPE-{VERSION}.tar.gz"
ARCHIVE_SHA256 = "95eef4be2689e822a918ac4eae3349cd78ca3f28af591afa421f8fac6d4cd889"
SOURCES = ("main.cc", "fastBPE.hpp")


def binary() -> Path:
    """The path of the built tool.

    Raises:
        UserError: It is not built; names `make fastbpe`.
    """
    path = _destination()
    if not os.access(path, os.X_OK):
        raise UserError(f"bpe.engine=fastbpe: {path} is not there; build it with `make fastbpe`")
    return path


def build() -> Path:
    """Fetch fastBPE's source archive with pip, check its SHA-256, compile it.

    Returns:
        The path of the tool.

    Raises:
        UserError: A step failed.
    """
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise UserError(f"{compiler}: there is no such C++ compiler; install g++, or name yours with CXX=")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        flags = ["--quiet", "--no-deps", "--no-binary", "fastBPE", "--dest", name]
        _run([sys.executable, "-m", "pip", "download", *flags, f"fastBPE=={VERSION}"])
        found = sha256_of(folder / ARCHIVE)
        if found != ARCHIVE_SHA256:
            raise UserError(f"{ARCHIVE}: SHA-256 is {found}, not {ARCHIVE_SHA256}; it is not used")
        with tarfile.open(folder / ARCHIVE) as archive:
            for source in SOURCES:
                archive.extract(f"fastBPE-{VERSION}/fastBPE/{source}", folder, filter="data")
        sources = folder / f"fastBPE-{VERSION}" / "fastBPE"
        built = folder / "fastbpe"
        _run([compiler, "-std=c++11", "-pthread", "-O3", str(sources / "main.cc"), "-o", str(built)])
        # Copied beside its place and renamed into it: replacing a tool that is running is then harmless.
        unfinished = _destination().with_suffix(f".{os.getpid()}")
        shutil.copy2(built, unfinished)
        return unfinished.replace(_destination())


def _destination() -> Path:
    return Path(sys.executable).parent / "fastbpe"


def _run(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        raise UserError(f"{' '.join(command)}: failed with\n{result.stderr.strip()}")


if __name__ == "__main__":
    try:
        print(f"fastBPE {VERSION}: {build()}")
    except UserError as error:
        sys.exit(f"error: {error}")
