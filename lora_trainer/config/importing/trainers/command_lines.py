"""sd-scripts' command lines in .bat, .sh and .ps1 files, read as words: nothing is ever run, no variable of this system is looked up.

Understood are variables and lists that the file itself sets, and conditions that compare them with a text. What depends on anything else
is marked as unclear.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs

from lora_trainer.messages import Message, say

SHELLS = {".bat": "bat", ".cmd": "bat", ".sh": "sh", ".bash": "sh", ".ps1": "ps1"}
CONTINUATION = {"bat": "^", "sh": "\\", "ps1": "`"}
SCRIPT = re.compile(r"(?:^|[\\/])(\w*train_\w+|fine_tune|sdxl_train)\.py$", re.IGNORECASE)
SHELL_MARKS = (
    ("sh", re.compile(r"^#!|\\\s*$", re.MULTILINE)),
    ("ps1", re.compile(r"`\s*$|^[ \t]*\$\w+\s*\+?=|^[ \t]*\[void\]", re.MULTILINE | re.IGNORECASE)),
    ("bat", re.compile(r"\^\s*$|^[ \t]*@?(echo off|set \"?\w+=|rem |call )|[A-Za-z]:\\", re.MULTILINE | re.IGNORECASE)),
)
"""What tells the shell of a text, the surest first."""
OPTION = re.compile(r"--[A-Za-z]")
LISTS = ("network_args", "optimizer_args", "lr_scheduler_args", "base_weights", "base_weights_multiplier", "text_encoder_lr")
UNCLEAR = say("It depends on what the file does not tell: a variable of the system, a condition or another command.")
_COMMENT = {"bat": re.compile(r"\s*@?(rem\b|::)", re.IGNORECASE), "sh": re.compile(r"\s*#"), "ps1": re.compile(r"\s*#")}
ESCAPED = {("sh", "\\"): '$`"\\\\', ("ps1", "`"): '$`"'}
"""Within double quotes: (shell, sign before) -> signs that it makes plain."""
_NAME = r"[A-Za-z_]\w*"


MAX_CHARACTERS = 100_000
"""Of a script; real ones have some thousand."""
MAX_VARIABLE_CHARACTERS, MAX_COMMANDS = 5000, 1000
"""Variables that hold each other grow without end, and a script may repeat them."""


@attrs.frozen
class Word:
    """A word of a command line, and whether all of it is known."""

    text: str
    is_clear: bool = True


@attrs.frozen
class CommandLine:
    """The arguments of a training script: name -> True, a text or a list; those of the launcher; names whose value is unclear."""

    script: str
    arguments: Mapping[str, Any]
    launcher: Mapping[str, Any]
    unclear: frozenset[str] = frozenset()
    others: int = 0
    """How many more training commands the file holds."""


def read_command_line(text: str, shell: str = "") -> CommandLine | None:
    """The first training command of a script or of a pasted text; None if there is none, or if the text is too large for one."""
    if len(text) > MAX_CHARACTERS:
        return None
    shell = shell or _guess_shell(text)
    script = _Script(shell)
    try:
        for line in _logical_lines(text, shell):
            script.read(line)
    except RecursionError:
        return None
    commands = [words for words in script.commands if any(SCRIPT.search(word.text) for word in words)]
    if not commands:
        loose = [word for words in script.commands for word in words]
        commands = [loose] if loose and OPTION.match(loose[0].text) else []
    return _command_line(commands[0], len(commands) - 1) if commands else None


def _command_line(words: Sequence[Word], others: int) -> CommandLine:
    start = next((number for number, word in enumerate(words) if SCRIPT.search(word.text)), -1)
    name = SCRIPT.search(words[start].text) if start >= 0 else None
    arguments, unclear = _arguments(words[start + 1 :])
    launcher, _ = _arguments(words[:start]) if start > 0 else ({}, frozenset())
    return CommandLine(name.group(1) if name else "", arguments, launcher, unclear, others)


def _arguments(words: Sequence[Word]) -> tuple[dict[str, Any], frozenset[str]]:
    values: dict[str, list[str]] = {}
    unclear: set[str] = set()
    name = ""
    for word in words:
        if OPTION.match(word.text):
            name, equals, value = word.text[2:].partition("=")
            name = name.replace("-", "_")
            values[name] = [value] if equals else []
        elif name and word.text:
            values[name].append(word.text)
        if not word.is_clear and name:
            unclear.add(name)
    return {name: _value(name, texts) for name, texts in values.items()}, frozenset(unclear)


def _value(name: str, texts: list[str]) -> Any:
    if not texts:
        return True
    return texts if name in LISTS and texts != [""] else " ".join(texts)


def _guess_shell(text: str) -> str:
    """The shell of a pasted text, by its marks; a path with a drive is Windows'."""
    return next((shell for shell, marks in SHELL_MARKS if marks.search(text)), "sh")


def _logical_lines(text: str, shell: str) -> Iterator[str]:
    """Lines with their continuations; comments between them are left out; a line of options continues the line before."""
    joined, is_open = "", False
    for raw in text.splitlines():
        line = _without_comment(raw.strip().removeprefix("!"), shell)
        if _COMMENT[shell].match(line) or (not line and not is_open):
            continue
        starts_anew = not is_open and not OPTION.match(line)
        if starts_anew and joined:
            yield joined
            joined = ""
        is_open = line.endswith(CONTINUATION[shell])
        joined = f"{joined} {line[:-1] if is_open else line}".strip()
        if not is_open and shell != "bat" and re.match(rf"\$?{_NAME}\s*\+?=\s*@?\(", joined) and joined.count("(") > joined.count(")"):
            is_open = True
    if joined:
        yield joined


def _without_comment(line: str, shell: str) -> str:
    quote = ""
    for number, sign in enumerate(line):
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "\"'" and shell != "bat":
            quote = sign
        elif sign == "#" and shell != "bat" and (number == 0 or line[number - 1].isspace()):
            return line[:number].rstrip()
    return line


class _Script:
    """Collects commands and variables of a file, line by line."""

    def __init__(self, shell: str) -> None:
        self.shell = shell
        self.variables: dict[str, list[Word]] = {}
        self.conditions: list[bool | None] = []
        self.last_condition: bool | None = True
        self.commands: list[list[Word]] = []
        self.pending: bool | None = None
        """The condition of PowerShell's block that begins next."""

    def read(self, line: str) -> None:
        """Reads one logical line."""
        {"bat": self._read_bat, "sh": self._read_sh, "ps1": self._read_ps1}[self.shell](line)

    # --- conditions ---

    @property
    def is_skipped(self) -> bool:
        """Whether the lines here are known not to be run."""
        return False in self.conditions

    def _enter(self, condition: bool | None) -> None:
        self.conditions.append(condition)

    def _leave(self) -> None:
        self.last_condition = self.conditions.pop() if self.conditions else True

    def _otherwise(self) -> None:
        """The part that is run where the condition before it does not hold."""
        self.conditions.append(None if self.last_condition is None else not self.last_condition)

    # --- variables ---

    def _set(self, name: str, words: list[Word], *, add: bool = False) -> None:
        if self.is_skipped:
            return
        if None in self.conditions:
            words = [attrs.evolve(word, is_clear=False) for word in words]
        name = name.lower() if self.shell != "sh" else name
        words = self.variables.get(name, []) + words if add else words
        is_small = sum(len(word.text) + 1 for word in words) <= MAX_VARIABLE_CHARACTERS
        self.variables[name] = words if is_small else [Word("", is_clear=False)]

    def _get(self, name: str) -> list[Word] | None:
        return self.variables.get(name.lower() if self.shell != "sh" else name)

    def _run(self, words: list[Word]) -> None:
        if words and not self.is_skipped and len(self.commands) < MAX_COMMANDS:
            self.commands.append([attrs.evolve(word, is_clear=False) for word in words] if None in self.conditions else words)

    # --- Windows' command prompt ---

    def _read_bat(self, line: str) -> None:
        line = line.lstrip("@").strip()
        if line.startswith(")"):
            self._leave()
            line = line[1:].strip()
            if line.lower().startswith("else"):
                self._otherwise()
            return
        if line.lower().startswith(("if ", "for ")):
            self._enter(None)
            if not line.endswith("("):
                if assigned := re.search(r"\bset\s+(.*)$", line, re.IGNORECASE):
                    self._assign_bat(assigned.group(1))
                else:
                    self._run(self._words(line))
                self._leave()
            return
        if assigned := re.match(r"set\s+(.*)$", line, re.IGNORECASE):
            self._assign_bat(assigned.group(1))
        else:
            self._run(self._words(line))

    def _assign_bat(self, text: str) -> None:
        if match := re.fullmatch(rf'"?\s*({_NAME})\s*=(.*?)"?\s*', text):
            quoted = match.group(2).strip()
            clear = all(word.is_clear for word in self._words(quoted))
            self._set(match.group(1), [Word(self._expand_bat(quoted), clear)])

    def _expand_bat(self, text: str) -> str:
        def value(match: re.Match[str]) -> str:
            words = self._get(match.group(1))
            if words is None or not all(word.is_clear for word in words):
                return match.group(0)
            return " ".join(word.text for word in words)

        return re.sub(rf"[%!]({_NAME})[%!]", value, text)

    # --- Unix shells ---

    def _read_sh(self, line: str) -> None:
        for piece in _split(line, ";"):
            self._read_sh_piece(piece.strip())

    def _read_sh_piece(self, piece: str) -> None:
        word = piece.partition(" ")[0]
        rest = piece.partition(" ")[2].strip()
        if word == "if":
            self._enter(self._holds(rest))
        elif word in ("then", "do", "{"):
            self._read_sh_piece(rest)
        elif word in ("else", "elif"):
            self._leave()
            self._otherwise()
            if word == "elif":
                self.conditions[-1] = None if self.conditions[-1] is None else self.conditions[-1] and self._holds(rest)
            elif rest:
                self._read_sh_piece(rest)
        elif word in ("fi", "done", "esac"):
            self._leave()
        elif word in ("for", "while", "until", "case"):
            self._enter(None)
        elif piece.startswith("[") and " && " in piece:
            condition, _, body = piece.partition(" && ")
            self._enter(self._holds(condition))
            self._read_sh_piece(body)
            self._leave()
        elif match := re.fullmatch(rf"(?:(?:export|local|readonly|declare(?: -\w+)?)\s+)?({_NAME})(\+?)=(.*)", piece, re.DOTALL):
            name, add, value = match.groups()
            is_list = value.startswith("(") and value.endswith(")")
            words = self._words(value[1:-1] if is_list else value)
            self._set(name, words if is_list else [_joined(words)], add=bool(add))
        elif piece:
            self._run(self._words(piece))

    # --- PowerShell ---

    def _read_ps1(self, line: str) -> None:
        for piece in _split(line, ";{}", keep="{}"):
            self._read_ps1_piece(piece.strip())

    def _read_ps1_piece(self, piece: str) -> None:
        if match := re.fullmatch(r"(else\s*)?(?:if|elseif)\s*\((.*)\)", piece, re.IGNORECASE | re.DOTALL):
            is_else = piece.lower().startswith("else")
            condition = self._holds(match.group(2))
            if is_else:
                condition = None if self.last_condition is None or condition is None else not self.last_condition and condition
            self.pending = condition
        elif piece.lower() == "else":
            self.pending = None if self.last_condition is None else not self.last_condition
        elif piece == "{":
            self._enter(self.pending)
            self.pending = None
        elif piece == "}":
            self._leave()
        elif match := re.fullmatch(rf"(?:\[[\w.]+\]\s*)*\$({_NAME})\s*(\+?)=\s*(.*)", piece, re.DOTALL):
            name, add, value = match.groups()
            is_list = value.startswith("@(") and value.endswith(")")
            words = self._words(value[2:-1].replace(",", " ") if is_list else value)
            if "::new()" in value or "New-Object" in value:
                words = []
            self._set(name, words if is_list or not words else [_joined(words)], add=bool(add))
        elif match := re.fullmatch(rf"(?:\[void\]\s*)?\$({_NAME})\.Add\((.*)\)", piece, re.IGNORECASE | re.DOTALL):
            parts = [_joined(self._words(part.strip())) for part in _split(match.group(2), "+")]
            self._set(match.group(1), [Word("".join(part.text for part in parts), all(part.is_clear for part in parts))], add=True)
        elif piece:
            self._run(self._words(piece))

    # --- comparisons ---

    def _holds(self, condition: str) -> bool | None:
        """Whether a comparison of variables with texts holds; None if it is anything else."""
        text = condition.strip().removeprefix("[[").removesuffix("]]").removeprefix("[").removesuffix("]").strip()
        if any(sign in text for sign in ("&&", "||", "-and", "-or", "(", "`", "|")):
            return None
        words = self._words(text)
        if not all(word.is_clear for word in words):
            return None
        texts = [word.text for word in words]
        if not words:
            return False if self.shell == "sh" and text else None
        if len(texts) == 1:
            return texts[0] not in ("", "0", "$false") if self.shell == "ps1" else texts[0] != ""
        if len(texts) == 2 and texts[0] in ("-n", "-z"):
            return (texts[1] != "") == (texts[0] == "-n")
        if len(texts) == 3:
            left, operator, right = texts
            if operator in ("==", "=", "-eq"):
                return left.lower() == right.lower() if self.shell == "ps1" else left == right
            if operator in ("!=", "-ne"):
                return left.lower() != right.lower() if self.shell == "ps1" else left != right
        return None

    # --- words ---

    def _words(self, text: str) -> list[Word]:
        """The words of one command up to a separator or a redirection, with variables replaced."""
        if self.shell == "bat":
            text = self._expand_bat(text)
        return _WordReader(self, text).words()


class _WordReader:
    """Splits a text into words by the rules of its shell."""

    def __init__(self, script: _Script, text: str) -> None:
        self.script, self.shell, self.text = script, script.shell, text
        self.place = 0
        self.current: list[str] = []
        self.is_clear = True
        self.has_word = False
        self.found: list[Word] = []

    def words(self) -> list[Word]:
        """All words."""
        while self.place < len(self.text):
            sign = self.text[self.place]
            if self._ends_command(sign):
                break
            if sign.isspace():
                self._end()
            elif sign == CONTINUATION[self.shell] and self.place + 1 < len(self.text):
                self.place += 1
                self._add(self.text[self.place])
            elif sign == '"' or (sign == "'" and self.shell != "bat"):
                self._quoted(sign)
            elif self._begins_variable(sign):
                self._variable(splits=True)
                continue
            elif sign == "`" and self.shell == "sh":
                self._unclear(self.text.find("`", self.place + 1))
            elif sign != "&":
                self.is_clear = self.is_clear and not self._is_windows_variable()
                self._add(sign)
            self.place += 1
        self._end()
        return self.found

    def _begins_variable(self, sign: str) -> bool:
        """$NAME; in PowerShell also @NAME for a list."""
        return (sign == "$" and self.shell != "bat") or (sign == "@" and self.shell == "ps1" and not self.has_word)

    def _ends_command(self, sign: str) -> bool:
        """A comment, a redirection or the next command; PowerShell's & at the start only calls what follows."""
        if sign in "<>" and "".join(self.current).isdecimal():
            self.current, self.has_word = [], False  # the number of a redirected stream
        if sign == "&" and self.shell == "ps1" and not self.found and not self.has_word:
            return False
        return sign in "|<>&" or (sign == "#" and self.shell != "bat" and not self.has_word)

    def _is_windows_variable(self) -> bool:
        return self.shell == "bat" and re.match(r"%~?\w|!\w+!", self.text[self.place :]) is not None

    def _add(self, text: str) -> None:
        self.current.append(text)
        self.has_word = True

    def _end(self) -> None:
        if self.has_word:
            self.found.append(Word("".join(self.current), self.is_clear))
        self.current, self.is_clear, self.has_word = [], True, False

    def _quoted(self, quote: str) -> None:
        self.has_word = True
        self.place += 1
        while self.place < len(self.text) and self.text[self.place] != quote:
            sign = self.text[self.place]
            if quote == '"' and sign == "$" and self.shell != "bat":
                self._variable(splits=False)
                continue
            following = self.text[self.place + 1 : self.place + 2]
            if following and quote == '"' and following in ESCAPED.get((self.shell, sign), ""):
                self.place += 1
                sign = following
            self.is_clear = self.is_clear and not self._is_windows_variable()
            self._add(sign)
            self.place += 1

    def _variable(self, *, splits: bool) -> None:
        match = re.match(rf"[$@](?:\{{({_NAME})(?:\[[@*]\])?\}}|({_NAME}))", self.text[self.place :])
        if match is None:
            end = self.text.find(")", self.place) if self.text.startswith("$(", self.place) else self.place
            self._unclear(end)
            self.place += 1
            return
        words = self.script._get(match.group(1) or match.group(2))
        self.place += match.end()
        if words is None:
            if match.group(0).lower() in ("$true", "$false"):
                self._add(match.group(0).lower())
                return
            self.is_clear = False
            self._add(match.group(0))
            return
        if splits and self.shell == "sh":
            words = [Word(part, word.is_clear) for word in words for part in word.text.split()]
        for number, word in enumerate(words):
            if number:
                self._end()
            self._add(word.text)
            self.is_clear = self.is_clear and word.is_clear

    def _unclear(self, end: int) -> None:
        """Takes a text up to `end` as it is: what it stands for is not known."""
        end = len(self.text) - 1 if end < self.place else end
        self.is_clear = False
        self._add(self.text[self.place : end + 1])
        self.place = end


def _joined(words: Sequence[Word]) -> Word:
    return Word(" ".join(word.text for word in words), all(word.is_clear for word in words))


def _split(line: str, signs: str, keep: str = "") -> Iterator[str]:
    """The parts of a line between `signs` outside quotes and `${...}`; those in `keep` are parts of their own."""
    part, quote, depth = "", "", 0
    for number, sign in enumerate(line):
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "\"'":
            quote = sign
        elif sign == "{" and line[number - 1 : number] == "$":
            depth += 1
        elif sign == "}" and depth:
            depth -= 1
        elif sign in signs and not depth:
            yield part
            if sign in keep:
                yield sign
            part = ""
            continue
        part += sign
    yield part


def command_notes(command: CommandLine) -> Iterator[Message]:
    """What a user should know about the command that was read."""
    if command.others:
        yield say("The file holds {count} training commands; the first was read.", count=command.others + 1)
    if command.script and not command.script.endswith("train_network"):
        yield say("{script}.py does not train a LoRA there: these settings are used for a LoRA here.", script=command.script)
    elif command.script not in ("", "train_network", "sdxl_train_network"):
        yield say("{script}.py trains models of another kind; here the model decides.", script=command.script)
