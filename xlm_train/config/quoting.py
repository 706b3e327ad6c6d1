"""Values of a command line put in quotes for Hydra's grammar, where they are paths or text."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from xlm_train.config.files import path_of
from xlm_train.config.overrides import overrides_of


def quote_text(arguments: Sequence[str], texts: Collection[str] = ()) -> list[str]:
    """Quote overrides so that Hydra takes them as what they plainly say: paths and prompts.

    That is where Hydra's grammar refuses a value (an umlaut, an apostrophe, `=`), and where a comma would make a sweep
    of it though none was asked for; `~/` is the home folder. What begins as a list or a mapping stays as it is: there a
    mistake is a mistake.

    Args:
        arguments: The command line's words.
        texts: Keys whose values are always text, whatever they look like, but for `null` and what is quoted already.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser, overrides = OverridesParser.create(), set(overrides_of(arguments))
    sweep = "-m" in arguments or "--multirun" in arguments
    words = []
    for word in arguments:
        key, equals, value = word.partition("=")
        if not equals or word not in overrides:
            words.append(word)
            continue
        if key in texts:
            if value != "null" and not _is_quoted(value):
                # a backslash keeps OmegaConf from looking up what `${...}` names; those before it are doubled
                value = _quoted(re.sub(r"(\\*)\$\{", lambda m: m[1] * 2 + "\\${", value))
        elif value and not _is_quoted(value) and value[0] not in "[{":
            value = re.sub(r"(?:^|(?<=,))~[\w.-]*(?=/)", lambda m: str(path_of(m[0])), value)  # no shell does it here
            try:
                is_sweep = parser.parse_override(f"{key}={value}").is_sweep_override()
                plain = sweep or not is_sweep
            except HydraException:
                plain = False
            if not plain:
                value = _quoted(value)
        words.append(f"{key}={value}")
    return words


def _quoted(value: str) -> str:
    """Quote a value for Hydra's grammar, where a backslash escapes only before a quote or at the end."""
    return "'" + re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + m[2].replace("'", "\\'"), value) + "'"


def _is_quoted(value: str) -> bool:
    """Tell whether a value is in quotes for Hydra, from its first character to its last."""
    return re.fullmatch(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""", value, re.DOTALL) is not None
