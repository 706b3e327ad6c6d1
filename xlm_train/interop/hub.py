"""An export sent to a model repository of the Hugging Face Hub, or the list of what would be."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from xlm_train.runtime.errors import StorageError

NAME = re.compile(r"(?!.*(--|\.\.))\w[\w.-]*/\w[\w.-]*")
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


def problems_of(repository: str, dry_run: bool) -> list[str]:
    """Say why nothing can be sent to a repository, without a look at the network."""
    found = []
    if not NAME.fullmatch(repository):
        found.append(f"push_to_hub={repository}: is no name of a repository: OWNER/NAME of letters, digits and . _ -")
    if not dry_run and find_spec("huggingface_hub") is None:
        found.append("push_to_hub: huggingface_hub is not installed: pip install 'xlm_train[hf]'")
    return found


def listing(folder: Path, repository: str) -> str:
    """List what `push` would send."""
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    lines = [f"{size:>15,}  {name}" for name, size in sorted(sizes.items())]
    total = f"{len(sizes)} files, {sum(sizes.values()):,} bytes"
    return "\n".join([f"dry run: nothing is sent; {repository} on the Hub would get {total}:", *lines])


def push(folder: Path, repository: str) -> str:
    """Send a folder, as one commit; a repository that does not exist is made, private.

    The Hub's own client does it, with the token that it finds: HF_TOKEN, or what `hf auth login` has kept.

    Args:
        folder: All of it is sent.
        repository: OWNER/NAME.

    Returns:
        The address of the commit.

    Raises:
        StorageError: It could not be sent.
    """
    # The client reads at its import whether it is to stay offline, which the comparison with transformers made it.
    environment = {key: value for key, value in os.environ.items() if key not in OFFLINE}
    done = subprocess.run(
        [sys.executable, "-m", __name__, str(folder), repository],
        env=environment, stdout=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise StorageError(f"push_to_hub={repository}: {done.stdout.strip()}; {folder} is whole")
    return done.stdout.strip()


def main(folder: str, repository: str) -> int:
    """Send a folder, print the commit's address or why there is none. Returns the exit status."""
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        api.create_repo(repository, private=True, exist_ok=True)
        sent = api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Export of xlm_train")
    except Exception as error:  # the client and what it stands on raise many types
        print(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
        return 1
    print(sent.commit_url)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
