"""The text of a settings file as plain values: JSON, TOML, YAML, or a command line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import attrs

from lora_trainer.config.checks.option_checks import problem
from lora_trainer.config.files import parse_toml
from lora_trainer.config.importing.trainers.command_lines import SHELLS, CommandLine, read_command_line
from lora_trainer.errors import ConfigError, MissingPackage, NothingToImport
from lora_trainer.install_command import install_command
from lora_trainer.parsing import TooDeep, parse_json

MAX_CHARACTERS = 2 << 20
"""Longer texts are no settings."""
MAX_DEPTH, MAX_VALUES = 64, 100_000
_YAML_LINE = re.compile(r"(---\s*$|[\w-]+:(\s|$))")


@attrs.frozen
class Content:
    """Plain values, and the form that they were written in: JSON, TOML, YAML, or command (a CommandLine)."""

    form: str
    values: Any


def parse_settings(text: str, where: str) -> Content:
    """The values of a text; the suffix of `where`, "" for pasted text, decides where the text itself does not. Raises ConfigError."""
    if len(text) > MAX_CHARACTERS:
        raise ConfigError([problem(where, "is too large for a file of settings.", "Choose the file that holds the settings.")])
    suffix = Path(where).suffix.lower() if where else ""
    content = _parse(text, where, suffix)
    if not isinstance(content.values, (dict, list, CommandLine)):
        raise unknown_file(where)
    if not isinstance(content.values, CommandLine):
        _check_size(content.values, where)
    return content


def _parse(text: str, where: str, suffix: str) -> Content:
    if suffix in SHELLS:
        if (command := read_command_line(text, SHELLS[suffix])) is None:
            raise unknown_file(where)
        return Content("command", command)
    if suffix in (".yaml", ".yml"):
        return Content("YAML", _parse_yaml(text, where))
    if text.lstrip()[:1] in ("{", "[") and not _is_toml_table(text):
        return Content("JSON", _parse_json(text, where))
    try:
        return Content("TOML", parse_toml(text, where))
    except ConfigError:
        if suffix != ".toml" and (command := read_command_line(text)) is not None:
            return Content("command", command)
        first = next((line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")), "")
        if suffix != ".toml" and _YAML_LINE.match(first):
            return Content("YAML", _parse_yaml(text, where))
        raise


def _parse_json(text: str, where: str) -> Any:
    try:
        return parse_json(text)
    except ValueError as error:
        fix = "Correct that line."
        if "escape" in str(error):
            fix = "Between double quotes a \\ begins an escape: write \\\\ or / instead of \\."
        raise ConfigError([problem(where, "it is not valid {kind} ({why}).", fix, kind="JSON", why=str(error))]) from error


def _parse_yaml(text: str, where: str) -> Any:
    """YAML without types beyond numbers, texts, true, false and null: a date stays a text, and no object is ever made."""
    try:
        import yaml
    except ImportError as error:
        raise MissingPackage(
            "YAML files are read with the package {package}, which is not installed.",
            package="PyYAML",
            path=where,
            command=install_command("PyYAML"),
            fix="Install it into the Python that runs this: {command}",
        ) from error

    class Loader(yaml.SafeLoader):  # type: ignore[misc]  # it comes without types
        """safe_load without dates."""

    Loader.yaml_implicit_resolvers = {
        sign: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for sign, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    try:
        values = yaml.load(text, Loader)
        _check_size(values, where)
        return _plain(values)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        why = f"{getattr(error, 'problem', None) or error}" + (f", line {mark.line + 1}" if mark else "")
        raise ConfigError([problem(where, "it is not valid {kind} ({why}).", "Correct that line.", kind="YAML", why=why)]) from error


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [_plain(part) for part in value]
    return value if value is None or isinstance(value, (str, int, float, bool)) else str(value)


def _check_size(content: Any, where: str) -> None:
    """Raises ConfigError for values that are nested too deeply or too many, as those of a YAML file that repeats itself."""
    stack, count = [(content, 0)], 0
    while stack:
        value, depth = stack.pop()
        count += 1
        if depth > MAX_DEPTH or count > MAX_VALUES:
            raise ConfigError(
                [problem(where, "it is nested too deeply or holds too many values.", "Choose the file that holds the settings.")]
            )
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple, set)) else ()
        stack.extend((part, depth + 1) for part in parts)


def _is_toml_table(text: str) -> bool:
    """Whether the text begins with a TOML table, "[model]" or "[[datasets]]", rather than a JSON list."""
    first_line = text.lstrip().partition("\n")[0].partition("#")[0].strip()
    if not (first_line.startswith("[") and first_line.endswith("]")):
        return False
    try:
        parse_json(first_line)
    except TooDeep:
        return False
    except ValueError:
        return first_line.strip("[]").strip() != "" and not any(character in first_line for character in '{},:"')
    return False


def unknown_file(where: str) -> NothingToImport:
    """The error for a file of no known program."""
    return NothingToImport(
        [
            problem(
                where,
                "it is not a settings file of a known kind.",
                "Known are files of kohya_ss, sd-scripts (TOML, or a command line in .bat, .sh or .ps1), lora-scripts, OneTrainer, "
                "ai-toolkit, SimpleTuner and the Dreambooth extension, and configs of this trainer.",
            )
        ]
    )
