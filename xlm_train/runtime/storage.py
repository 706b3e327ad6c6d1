"""Object storage through fsspec: s3://, gs://, az:// and, to read, hf://. Nothing else of the project opens a URL.

Credentials come from the libraries' own chains (environment, their files, the machine's role): none is read, kept or
printed here. Nothing that is read is unpickled. An object appears whole or not at all (such a PUT or multipart upload is
atomic); there is no rename, and a listing may be old.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from xlm_train.runtime.errors import StorageError
from xlm_train.runtime.files import locked, make_folder

# Two parts of a large upload at a time, as each is held in memory; three attempts, as the mirror tries again by itself.
S3 = {"max_concurrency": 2, "config_kwargs": {"retries": {"mode": "standard", "max_attempts": 3}}}
# Of each scheme: the module that serves it, the extra that installs it, and options of its file system.
SCHEMES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "s3": ("s3fs", "s3", S3),
    "gs": ("gcsfs", "gcs", {}),
    "az": ("adlfs", "az", {}),
    "hf": ("huggingface_hub", "hf", {}),
}
READ_ONLY = ("hf",)
BLOCK = 1 << 25  # bytes asked for at once
FETCHERS = 8  # files downloaded side by side
SENDERS = 2  # files uploaded side by side


class MissingObject(StorageError):
    """There is no such object."""


class DamagedObject(StorageError):
    """What came is not what was stored."""


def is_url(path: str | Path) -> bool:
    """Whether a path is a URL, well-formed or not."""
    return "://" in str(path)


def url_problem(url: str, writes: bool = False) -> str | None:
    """Say why a URL cannot be used, without a look at the network; None where it can.

    Args:
        url: It is not repeated in the answer where it holds a password.
        writes: Whether something is to be stored there.
    """
    scheme, _, rest = url.partition("://")
    host, *names = rest.rstrip("/").split("/")
    if "@" in host:
        return "a URL must not hold credentials: they come from the environment, the provider's files or the machine's role"
    if scheme not in SCHEMES or (writes and scheme in READ_ONLY):
        served = [name for name in SCHEMES if not (writes and name in READ_ONLY)]
        return f"{scheme}:// is not supported{' to write to' if writes else ''}; {', '.join(f'{n}://' for n in served)} are"
    if not host or any(name in ("", ".", "..") for name in names) or re.search(r"[\x00-\x1f?#\\]", rest):
        return f"is no URL of a folder or object: {scheme}://BUCKET/NAME/NAME"
    module, extra, _ = SCHEMES[scheme]
    if find_spec(module) is None:
        return f"{module} is not installed: pip install 'xlm_train[{extra}]'"
    return None


def url_problems(key: str, url: str, writes: bool = False) -> Iterator[str]:
    """Tell what is wrong with a URL; one that holds a password is not repeated.

    Args:
        key: Under which the config has it.
        url: May be no URL.
        writes: Whether something is to be stored there.
    """
    if (why := url_problem(url, writes)) is not None:
        yield f"{key}: {why}" if "@" in url else f"{key}={url}: {why}"


def cache_folder() -> Path:
    """Where this machine keeps what it fetches: $XLM_TRAIN_CACHE, or ~/.cache/xlm_train."""
    return Path(os.environ.get("XLM_TRAIN_CACHE") or Path.home() / ".cache" / "xlm_train").absolute()


def cached(kind: str, url: str) -> Path:
    """The place in the cache that stands for a URL.

    Args:
        kind: A folder of the cache.
        url: One of which `url_problem` has nothing to say.
    """
    scheme, _, rest = url.partition("://")
    return cache_folder().joinpath(kind, scheme, *rest.rstrip("/").split("/"))


@contextlib.contextmanager
def uploaded(out: str, last: str) -> Iterator[Path]:
    """Give a place for a result; where `out` is a URL, it is uploaded from there when the block succeeds.

    Args:
        out: A path, which is the place, or the URL of a folder that is empty.
        last: Name of the file that is uploaded last: a folder that has it is whole.

    Raises:
        StorageError: There is something at the URL already, or it cannot be written.
    """
    if not is_url(out):
        yield Path(out)
        return
    if problems := [*url_problems("out", out, writes=True)]:
        raise StorageError(problems)
    store = Store(out)
    if store.names(""):
        raise StorageError(f"out={out}: is not empty; give another folder")
    make_folder(cache_folder())
    with tempfile.TemporaryDirectory(dir=cache_folder()) as folder:
        place = Path(folder) / store.url.rpartition("/")[2]
        yield place
        files = [path for path in place.rglob("*") if path.is_file()]
        for path in sorted(files, key=lambda path: path.name == last):
            store.upload(path, path.relative_to(place).as_posix())


class Store:
    """The objects below one URL, by names that are paths relative to it.

    Args:
        url: Of a folder.

    Raises:
        StorageError: The URL cannot be used. Every method raises it where the service cannot be reached or refuses.
    """

    def __init__(self, url: str) -> None:
        if (why := url_problem(url)) is not None:
            raise StorageError(why if "@" in url else f"{url}: {why}")
        import fsspec

        self.url = url.rstrip("/")
        scheme = url.partition("://")[0]
        # an object that another machine has just written must be seen: no listing is kept
        options = {"use_listings_cache": False, **SCHEMES[scheme][2]}
        with self._told(""):
            self._files = fsspec.filesystem(scheme, **options)
            self._root = self._files._strip_protocol(self.url)

    def _key(self, name: str) -> str:
        if name.startswith("/") or ".." in name.split("/"):
            raise StorageError(f"{self.url}: '{name}' would lie outside of it")
        return f"{self._root}/{name}" if name else self._root

    @contextlib.contextmanager
    def _told(self, name: str) -> Iterator[None]:
        """Turn what libraries raise, which are many types, into one line."""
        where = f"{self.url}/{name}".rstrip("/")
        try:
            yield
        except StorageError:
            raise
        except FileNotFoundError as error:
            raise MissingObject(f"{where}: there is no such object") from error
        except Exception as error:
            text = re.sub(r"//[^/@\s]*@", "//", str(error).partition("\n")[0])  # a proxy's password
            raise StorageError(f"{where}: {type(error).__name__}: {text}") from error

    def names(self, folder: str) -> list[str]:
        """List all objects below a folder. The list may be old: ask for an object by its name to be sure."""
        with self._told(folder):
            self._files.invalidate_cache()
            found = self._files.find(self._key(folder))
        return sorted(str(key).removeprefix(f"{self._root}/") for key in found)

    def read(self, name: str) -> bytes | None:
        """Return an object's bytes; None where there is none."""
        try:
            with self._told(name):
                return bytes(self._files.cat_file(self._key(name)))
        except MissingObject:
            return None

    def write(self, name: str, data: bytes) -> None:
        """Write an object, or replace it."""
        with self._told(name):
            self._files.pipe_file(self._key(name), data)

    def create(self, name: str, data: bytes) -> bool:
        """Write an object that must not exist yet (If-None-Match: *). Returns False where it does."""
        try:
            with self._told(name):
                self._files.pipe_file(self._key(name), data, mode="create")
        except StorageError as error:
            if not (
                isinstance(error.__cause__, FileExistsError) or re.search("Precondition|ConditionalRequest", str(error))
            ):
                raise
        # An attempt that arrived may have been answered too late, and the next one then found its object; and where a
        # service does not know the condition and overwrites, the last one counts.
        return self.read(name) == data

    def size_and_time(self, name: str) -> tuple[int, datetime]:
        """Return an object's bytes and when it was written, by the service's clock.

        Raises:
            MissingObject: There is none.
        """
        with self._told(name):
            self._files.invalidate_cache()
            found = self._files.info(self._key(name))
            return int(found["size"]), self._files.modified(self._key(name)).astimezone(UTC)

    def stamp(self, name: str) -> tuple[int, str]:
        """Return an object's bytes, and what is another when it has been replaced.

        Raises:
            MissingObject: There is none.
        """
        with self._told(name):
            self._files.invalidate_cache()
            found = self._files.info(self._key(name))
            if found.get("type") == "directory":
                raise MissingObject(
                    f"{self.url}/{name}: is a folder; a pattern names objects, as in {self.url}/{name}/*.gz"
                )
            tag = found.get("ETag") or found.get("etag") or self._files.modified(self._key(name))
            return int(found["size"]), str(tag)

    def part(self, name: str, start: int, end: int) -> bytes:
        """Return bytes start .. end-1 of an object.

        Args:
            name: Of the object.
            start: The first byte, from 0.
            end: Behind the last.

        Raises:
            MissingObject: There is none.
        """
        with self._told(name):
            return bytes(self._files.cat_file(self._key(name), start=start, end=end))

    def upload(self, path: Path, name: str) -> None:
        """Store a file, in parts where it is large."""
        with self._told(name):
            self._files.put_file(str(path), self._key(name))

    def remove(self, names: Iterable[str]) -> None:
        """Remove objects."""
        for name in names:
            with contextlib.suppress(MissingObject), self._told(name):
                self._files.rm_file(self._key(name))

    def download(self, name: str, path: Path, matches: Callable[[Path], bool]) -> None:
        """Fetch an object into a file, which appears when it is whole; one that was stopped goes on where it stood.

        Args:
            name: Of the object.
            path: Of the file; its folder is made.
            matches: Tells of the fetched file whether it is what was stored.

        Raises:
            MissingObject: There is no such object.
            DamagedObject: It does not match. The next attempt starts again.
        """
        size, _ = self.size_and_time(name)
        make_folder(path.parent)
        part = path.with_name(f".{path.name}.part")
        try:
            with open(part, "ab") as file:
                goes_on = 0 < file.tell() <= size
                if file.tell() > size:
                    file.truncate(0)
                while (start := file.seek(0, os.SEEK_END)) < size:
                    data = self.part(name, start, min(start + BLOCK, size))
                    if not data:
                        raise DamagedObject(f"{self.url}/{name}: ends before its {size:,} bytes")
                    file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise StorageError(f"{path}: cannot be written: {error.strerror or error}") from error
        if not matches(part):
            part.unlink()
            if goes_on:  # maybe of another object that had this name
                self.download(name, path, matches)
                return
            raise DamagedObject(f"{self.url}/{name}: its checksum is wrong: the object is damaged or truncated")
        os.replace(part, path)

    def download_all(self, files: Mapping[str, Callable[[Path], bool]], folder: Path) -> None:
        """Fetch objects side by side into a folder, under their names; one process of the machine does, the others wait.

        Args:
            files: Of each name, whether a file is what was stored. A file that is there already is not fetched again:
                files get their names when they are whole.
            folder: It is made.

        Raises:
            StorageError: With everything that could not be fetched; what was fetched stays.
        """
        with locked(folder / ".lock"), ThreadPoolExecutor(FETCHERS) as pool:
            missing = [name for name in files if not (folder / name).is_file()]
            fetched = [(name, pool.submit(self.download, name, folder / name, files[name])) for name in missing]
            if problems := [str(error) for _, one in fetched if (error := one.exception()) is not None]:
                raise StorageError(problems)

    def upload_all(self, files: Mapping[str, Path]) -> None:
        """Store files side by side, under their names.

        Raises:
            StorageError: With everything that could not be stored.
        """
        with ThreadPoolExecutor(SENDERS) as pool:
            sent = [pool.submit(self.upload, path, name) for name, path in files.items()]
            if problems := [str(error) for one in sent if (error := one.exception()) is not None]:
                raise StorageError(problems)
