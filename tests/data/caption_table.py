"""Captions and what becomes of them, written down by hand from sd-scripts' documented order; no case is computed.

Each case: (what is written in the caption file, options, what the model may read). One text: it is read each time. Several: each of
them is read at some time, and nothing else. `at` gives epoch, step and total_steps where they matter.
"""

from __future__ import annotations

import attrs


@attrs.frozen
class Case:
    """A caption file's text (None: no file, then `words` are the folder's), options and all that may be read."""

    caption: str | None
    options: dict[str, object]
    read: tuple[str, ...]
    at: dict[str, int] = attrs.Factory(dict)
    words: str = ""


def case(caption: str | None, options: dict[str, object], *read: str, words: str = "", **at: int) -> Case:
    return Case(caption, options, read, at, words)


SHUFFLE = {"shuffle": True}
KEEP_1 = {"shuffle": True, "keep_tokens": 1}
MARK = {"shuffle": True, "keep_tokens_separator": "|||"}
WILD = {"wildcard": True}
GROW = {"token_warmup_step": 10}
DROP_TAGS = {"tag_dropout_rate": 1.0}

CASES = [
    # as written
    case("a cat on a mat", {}, "a cat on a mat"),
    case("a,b ,  c", {}, "a,b ,  c"),
    case("a  photo,of , a dog", {}, "a  photo,of , a dog"),
    case("  spaces around  ", {}, "spaces around"),
    case("", {}, ""),
    case("first\nsecond", {}, "first"),
    case("first\r\nsecond\r\n", {}, "first"),
    case("{red|blue} hat", {}, "{red|blue} hat"),
    case("a ||| b, c", {"keep_tokens_separator": "|||"}, "a ||| b, c"),
    case("a, b", {"keep_tokens": 1}, "a, b"),
    case(None, {}, "sls frog", words="sls frog"),
    case(None, {"class_tokens": "toad"}, "toad", words="sls frog"),
    # prefix and suffix, a space between
    case("cat", {"prefix": "photo,"}, "photo, cat"),
    case("cat", {"suffix": ", outdoors"}, "cat , outdoors"),
    case("cat", {"prefix": "a", "suffix": "b"}, "a cat b"),
    case("x\ny", {"prefix": "a", "suffix": "b"}, "a x b"),
    case(None, {"prefix": "photo of"}, "photo of sls frog", words="sls frog"),
    case("b", {"prefix": "a,", "shuffle": True}, "a, b", "b, a"),
    case("b", {"prefix": "a,", "shuffle": True, "keep_tokens": 1}, "a, b"),
    case("cat", {"prefix": "{one|two}", "wildcard": True}, "one cat", "two cat"),
    # the whole caption dropped
    case("cat, dog", {"dropout_rate": 1.0}, ""),
    case("cat", {"dropout_rate": 1.0, "prefix": "photo"}, ""),
    case("cat", {"dropout_rate": 0.5}, "cat", ""),
    case(None, {"dropout_rate": 1.0}, "", words="sls frog"),
    case("cat", {"dropout_every_n_epochs": 2}, "cat", epoch=1),
    case("cat", {"dropout_every_n_epochs": 2}, "", epoch=2),
    case("cat", {"dropout_every_n_epochs": 2}, "cat", epoch=3),
    case("cat", {"dropout_every_n_epochs": 1}, "", epoch=7),
    case("cat", {"dropout_every_n_epochs": 5, "dropout_rate": 1.0}, "", epoch=1),
    # lines and words that are drawn
    case("one\ntwo", WILD, "one", "two"),
    case("one\n\n  two  \r\nthree\n", WILD, "one", "two", "three"),
    case("one\ntwo", {**WILD, "prefix": "p", "suffix": "s"}, "p one", "two s"),
    case("a {red|blue} hat", WILD, "a red hat", "a blue hat"),
    case("{a|b} {c|d}", WILD, "a c", "a d", "b c", "b d"),
    case("{a||b}", WILD, "a", "", "b"),
    case("{only}", WILD, "only"),
    case("{}", WILD, "{}"),
    case("{{red|blue}} hat", WILD, "{red|blue} hat"),
    case("{{x}} {a|b}", WILD, "{x} a", "{x} b"),
    case("open { and }} shut", WILD, "open { and } shut"),
    case("{a, b|c}, d", WILD, "a, b, d", "c, d"),
    case("{a|b}\n{c|d}", WILD, "a", "b", "c", "d"),
    case(None, WILD, "red frog", "blue frog", words="{red|blue} frog"),
    case("{a|b}, c", {**WILD, **SHUFFLE}, "a, c", "c, a", "b, c", "c, b"),
    # parted, shuffled
    case("a, b", SHUFFLE, "a, b", "b, a"),
    case("a,b", SHUFFLE, "a, b", "b, a"),
    case(" a ,  b ", SHUFFLE, "a, b", "b, a"),
    case("a, b, c", SHUFFLE, "a, b, c", "a, c, b", "b, a, c", "b, c, a", "c, a, b", "c, b, a"),
    case("a, b, c", KEEP_1, "a, b, c", "a, c, b"),
    case("a, b, c", {**SHUFFLE, "keep_tokens": 2}, "a, b, c"),
    case("a, b", {**SHUFFLE, "keep_tokens": 9}, "a, b"),
    case("black cat, b", KEEP_1, "black cat, b"),
    case("a. b", {**SHUFFLE, "separator": "."}, "a. b", "b. a"),
    case("a, b. c", {**SHUFFLE, "separator": "."}, "a, b. c", "c. a, b"),
    case("a; b", {**SHUFFLE, "separator": ";"}, "a; b", "b; a"),
    case("a;b;c", {"separator": ";", "tag_dropout_rate": 0.5, "keep_tokens": 1}, "a; b; c", "a; b", "a; c", "a"),
    case("a | b", {**SHUFFLE, "separator": " | "}, "a | b", "b | a"),
    case(None, SHUFFLE, "sls frog", words="sls frog"),
    case(None, SHUFFLE, "frog, pond", "pond, frog", words="frog, pond"),
    # the mark of kept parts wins over their number
    case("a, b ||| c, d", MARK, "a, b, c, d", "a, b, d, c"),
    case("a ||| b, c ||| d, e", MARK, "a, b, c, d, e", "a, c, b, d, e"),
    case("a, ||| b,, c", MARK, "a, b, c", "a, c, b"),
    case("||| a, b", MARK, "a, b", "b, a"),
    case("a, b", {**MARK, "keep_tokens": 1}, "a, b"),
    case("a ||| b, c", {**MARK, "keep_tokens": 3}, "a, b, c", "a, c, b"),
    case("c, d", {**MARK, "prefix": "a, b |||"}, "a, b, c, d", "a, b, d, c"),
    case(
        "c, d",
        {**MARK, "prefix": "a |||", "suffix": ", s ||| z"},
        "a, c, d, s, z",
        "a, c, s, d, z",
        "a, d, c, s, z",
        "a, d, s, c, z",
        "a, s, c, d, z",
        "a, s, d, c, z",
    ),
    case("a ||| b", {**DROP_TAGS, "keep_tokens_separator": "|||"}, "a"),
    case("a ||| b ||| c", {**DROP_TAGS, "keep_tokens_separator": "|||"}, "a, c"),
    # captions that grow: from token_warmup_min parts to all of them at token_warmup_step
    case("a, b, c, d, e", GROW, "a", step=0),
    case("a, b, c, d, e", GROW, "a, b, c", step=5),
    case("a, b, c, d, e", GROW, "a, b, c, d", step=9),
    case("a, b, c, d, e", GROW, "a, b, c, d, e", step=10),
    case("a, b, c, d, e", {**GROW, "token_warmup_min": 3}, "a, b, c", step=0),
    case("a, b, c, d, e", {**GROW, "token_warmup_min": 0}, "", step=0),
    case("a, b", {**GROW, "token_warmup_min": 7}, "a, b", step=0),
    case("a, b, c, d, e", {**GROW, "keep_tokens": 2}, "a, b, c", step=0),
    case("a, b, c, d, e", {"token_warmup_step": 0.5}, "a, b, c", step=25, total_steps=100),
    case("a, b, c, d, e", {"token_warmup_step": 0.5}, "a, b, c, d, e", step=50, total_steps=100),
    case("a, b, c", {**GROW, **SHUFFLE, "token_warmup_min": 2}, "a, b", "b, a", step=0),
    case("a,b , c", {**GROW, "keep_tokens": 1}, "a, b, c", step=99),
    # parts dropped
    case("a, b, c", DROP_TAGS, ""),
    case("a, b, c", {**DROP_TAGS, "keep_tokens": 2}, "a, b"),
    case("a, b", {"tag_dropout_rate": 0.5}, "a, b", "a", "b", ""),
    case("a, b", {"tag_dropout_rate": 0.5, "keep_tokens": 1}, "a, b", "a"),
    case("a, b", {"tag_dropout_rate": 0.5, "shuffle": True}, "a, b", "b, a", "a", "b", ""),
    case("a, b", {"tag_dropout_rate": 0.5, "dropout_rate": 1.0}, ""),
    # the second separator: one part, at last the usual separator
    case("a;;;b, c", {"secondary_separator": ";;;"}, "a,b, c"),
    case("a;;;b, c", {**SHUFFLE, "secondary_separator": ";;;"}, "a,b, c", "c, a,b"),
    case("a;;;b, c", {"secondary_separator": ";;;", "tag_dropout_rate": 0.5}, "a,b, c", "a,b", "c", ""),
    case("a;;;b. c", {"secondary_separator": ";;;", "separator": "."}, "a.b. c"),
    case("{a;;;b|c}", {**WILD, "secondary_separator": ";;;"}, "a,b", "c"),
    # all together
    case(
        "x;;;y, {r|g}\nz",
        {**WILD, **MARK, "prefix": "p |||", "secondary_separator": ";;;"},
        "p, x,y, r",
        "p, r, x,y",
        "p, x,y, g",
        "p, g, x,y",
        "z",
    ),
]

OURS = [
    # the trigger word, which sd-scripts does not have: in front of every caption that lacks it, never dropped, counts as kept
    case("smile, hat", {"trigger_word": "sks"}, "sks, smile, hat"),
    case("SKS, smile", {"trigger_word": "sks"}, "SKS, smile"),
    case("masks", {"trigger_word": "sks"}, "sks, masks"),
    case("", {"trigger_word": "sks"}, "sks"),
    case("a, b", {"trigger_word": "sks", **SHUFFLE}, "sks, a, b", "sks, b, a"),
    case("a, b", {"trigger_word": "sks", **SHUFFLE, "keep_tokens": 2}, "sks, a, b"),
    case("photo of sks, a", {"trigger_word": "sks", **SHUFFLE}, "photo of sks, a"),
    case("a, b ||| c", {"trigger_word": "sks", **MARK}, "sks, a, b, c"),
    case("||| sks, c, d", {"trigger_word": "sks", **MARK}, "sks, c, d", "sks, d, c"),
    case("a", {"trigger_word": "sks", "prefix": "sks girl,"}, "sks girl, a"),
    case("a", {"trigger_word": "sks", "prefix": "best,"}, "sks, best, a"),
    case("a, b", {"trigger_word": "sks", **DROP_TAGS}, "sks"),
    case("a, sks, b", {"trigger_word": "sks", **DROP_TAGS}, "sks"),
    case("a, b, sks", {"trigger_word": "sks", **GROW}, "a, sks", step=0),
    case("a", {"trigger_word": "sks", "dropout_rate": 1.0}, ""),
    case("{sks|xyz} a", {"trigger_word": "sks", **WILD}, "sks a", "sks, xyz a"),
    case("one\nsks two", {"trigger_word": "sks", **WILD}, "sks, one", "sks two"),
    case(None, {"trigger_word": "sks"}, "sks girl", words="girl"),
    case(None, {"trigger_word": "sks"}, "sks girl", words="sks girl"),
    case(None, {"trigger_word": "sks", "prefix": "photo of"}, "photo of sks girl", words="girl"),
    case(None, {"trigger_word": "sks", **SHUFFLE}, "sks girl, hat", words="girl, hat"),
    # parts of nothing are nobody's tags
    case("a,, b,", SHUFFLE, "a, b", "b, a"),
    case("\n\n  late  \n", {}, "late"),
    case("", {"prefix": "photo"}, "photo"),
]
