"""Regular expressions from a config, matched without backtracking: no pattern takes longer than its length times the name's.

Python's `re` needs exponential time for some patterns and holds the interpreter meanwhile, a WebUI with it. Here the parsed pattern
becomes a nondeterministic automaton (Thompson 1968), whose sets of states are cached while names are read (a lazy DFA). Look-around and
backreferences have no such automaton and are refused.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable
from typing import Any

import attrs

from lora_trainer.messages import Message, say

if sys.version_info >= (3, 11):
    from re import _constants as ops
    from re import _parser as parser
else:
    import sre_constants as ops
    import sre_parse as parser

MAX_LENGTH = 1000
"""Characters of a pattern."""
MAX_STATES = 2000
"""States of its automaton, into which counted repeats are written out."""
MAX_VISITS = 300_000
"""States that are visited in all for one pattern: half a second. Real patterns need a few thousand, because sets are cached."""
END = ""
"""Stands for the character after the last one."""
_REFUSED = {
    "ASSERT": "(?=",
    "ASSERT_NOT": "(?!",
    "GROUPREF": "\\1",
    "GROUPREF_EXISTS": "(?(",
    "ATOMIC_GROUP": "(?>",
    "POSSESSIVE_REPEAT": "*+",
}
Test = Callable[[str], bool]
Condition = Callable[[str, str], bool]


class PatternError(ValueError):
    """Why a pattern cannot be used."""

    def __init__(self, reason: Message) -> None:
        super().__init__(reason.text())
        self.reason = reason


@attrs.define(eq=False)
class _State:
    """`test` consumes a character; without one the state leads to `next` at once, under its `condition` (on the characters around)."""

    test: Test | None = None
    condition: Condition | None = None
    next: list[_State] = attrs.field(factory=list)


@attrs.frozen(eq=False)
class _Set:
    """The states after a character, and the sets that follow each (kind of character before, character): (whether it matched, set)."""

    states: tuple[_State, ...]
    following: dict[tuple[str, str], tuple[bool, _Set]] = attrs.field(factory=dict)


class Pattern:
    """A compiled pattern. Raises PatternError where it is invalid, too large, or needs backtracking."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._literal = text if not any(sign in text for sign in "\\.^$*+?{}[]|()") and len(text) <= MAX_LENGTH else None
        self._visits = 0
        self._end = _State()
        if self._literal is not None:
            return
        try:
            tree = _parse(text)
            self._start = _Builder().sequence(tree, tree.state.flags, self._end)
        except RecursionError as error:
            raise PatternError(say("it is nested too deeply")) from error
        self._sets: dict[frozenset[_State], _Set] = {}
        self._first = self._set([])

    def matches(self, name: str) -> bool:
        """Whether the name holds the pattern anywhere, as `re.search`. Raises PatternError after MAX_VISITS."""
        if self._literal is not None:
            return self._literal in name
        current, before = self._first, "start"
        for character in (*name, END):
            key = (before, character)
            step = current.following.get(key)
            if step is None:
                step = current.following[key] = self._step(current, before, character)
            matched, current = step
            if matched:
                return True
            before = "word" if _is_word(character) else "other"
        return False

    def _step(self, current: _Set, before: str, character: str) -> tuple[bool, _Set]:
        reached: list[_State] = []
        seen: set[_State] = set()
        waiting = [*current.states, self._start]
        while waiting:
            state = waiting.pop()
            if state in seen:
                continue
            seen.add(state)
            if state is self._end:
                return True, current
            if state.test is not None:
                if character != END and state.test(character):
                    reached += state.next
            elif state.condition is None or state.condition(before, character):
                waiting += state.next
        self._visits += len(seen)
        if self._visits > MAX_VISITS:
            raise PatternError(say("it takes too long"))
        return False, self._set(reached)

    def _set(self, states: Iterable[_State]) -> _Set:
        unique = frozenset(states)
        if unique not in self._sets:
            self._sets[unique] = _Set(tuple(unique))
        return self._sets[unique]


def _parse(text: str) -> Any:
    if len(text) > MAX_LENGTH:
        raise PatternError(say("it has more than {most} characters", most=MAX_LENGTH))
    try:
        return parser.parse(text)
    except (re.error, OverflowError) as error:
        raise PatternError(say("{error}", error=str(error))) from error


class _Builder:
    """Builds the states of a parsed pattern from its end to its start."""

    def __init__(self) -> None:
        self._count = 0

    def _state(self, **values: Any) -> _State:
        self._count += 1
        if self._count > MAX_STATES:
            raise PatternError(say("it is too large"))
        return _State(**values)

    def sequence(self, nodes: Any, flags: int, following: _State) -> _State:
        """The first state of nodes one after the other, the last of which leads to `following`."""
        for code, value in reversed(list(nodes)):
            following = self._node(code, value, flags, following)
        return following

    def _node(self, code: Any, value: Any, flags: int, following: _State) -> _State:
        if code is ops.AT:
            return self._state(condition=_condition(value, flags), next=[following])
        if code is ops.SUBPATTERN:
            _, added, removed, inner = value
            return self.sequence(inner, (flags | added) & ~removed, following)
        if code is ops.BRANCH:
            return self._state(next=[self.sequence(branch, flags, following) for branch in value[1]])
        if code in (ops.MAX_REPEAT, ops.MIN_REPEAT):
            low, high, inner = value
            return self._repeat(low, high, inner, flags, following)
        if str(code) in _REFUSED:
            raise PatternError(say("it uses {part}, which needs backtracking", part=_REFUSED[str(code)]))
        return self._state(test=_character_test(code, value, flags), next=[following])

    def _repeat(self, low: int, high: int, inner: Any, flags: int, following: _State) -> _State:
        """`inner` written out `low` times, then a loop, or `high` - `low` times more of which each may be left out."""
        low, unbounded = int(low), high is ops.MAXREPEAT or high == ops.MAXREPEAT
        if low > MAX_STATES or (not unbounded and high > MAX_STATES):
            raise PatternError(say("it is too large"))
        if unbounded:
            loop = self._state(next=[following])
            loop.next.append(self.sequence(inner, flags, loop))
            following = loop
        else:
            end = following
            for _ in range(int(high) - low):
                following = self._state(next=[end, self.sequence(inner, flags, following)])
        for _ in range(low):
            self._state()  # counts an empty `inner` too
            following = self.sequence(inner, flags, following)
        return following


def _is_word(character: str) -> bool:
    return character.isalnum() or character == "_"


def _condition(code: Any, flags: int) -> Condition:
    """Whether a place between two characters is an anchor's: `before` is "start", "word" or "other". Names hold no line breaks."""
    if code in (ops.AT_BEGINNING, ops.AT_BEGINNING_STRING):
        return lambda before, character: before == "start"
    if code in (ops.AT_END, ops.AT_END_STRING):
        return lambda before, character: character == END
    wanted = code is ops.AT_BOUNDARY
    return lambda before, character: ((before == "word") != _is_word(character)) is wanted


def _character_test(code: Any, value: Any, flags: int) -> Test:
    """Whether a character matches a node; letter case does not matter under (?i)."""
    test = _plain_test(code, value, flags)
    if not flags & re.IGNORECASE:
        return test
    if code is ops.NOT_LITERAL or (code is ops.IN and value[0][0] is ops.NEGATE):
        return lambda character: test(character.lower()) and test(character.upper())
    return lambda character: test(character) or test(character.lower()) or test(character.upper())


def _plain_test(code: Any, value: Any, flags: int) -> Test:
    if code is ops.LITERAL:
        return chr(value).__eq__
    if code is ops.NOT_LITERAL:
        return chr(value).__ne__
    if code is ops.ANY:
        return lambda character: True
    if code is ops.RANGE:
        return lambda character: value[0] <= ord(character) <= value[1]
    if code is ops.CATEGORY:
        return _category_test(str(value), ascii_only=bool(flags & re.ASCII))
    if code is ops.IN:
        negated = value[0][0] is ops.NEGATE
        tests = [_plain_test(kind, part, flags) for kind, part in value[negated:]]
        return lambda character: any(test(character) for test in tests) is not negated
    raise PatternError(say("it uses {part}, which needs backtracking", part=str(code)))


def _category_test(name: str, *, ascii_only: bool) -> Test:
    """\\d, \\s, \\w and their opposites."""
    kinds: dict[str, Test] = {"DIGIT": str.isdecimal, "SPACE": str.isspace, "WORD": _is_word}
    test = kinds[name.rpartition("_")[2]]
    negated = "_NOT_" in name
    return lambda character: (test(character) and (character.isascii() or not ascii_only)) is not negated
