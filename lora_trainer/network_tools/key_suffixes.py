"""How the keys of one layer look in a file: which kind of network it is, what belongs together, and what it adds up to (no torch)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from math import prod

Shape = tuple[int, ...]

LORA = ("lora_down.weight", "lora_up.weight", "lora_mid.weight")
KINDS: Mapping[str, tuple[str, ...]] = {
    "lora": LORA,
    "loha": ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
    "lokr": ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t1", "lokr_t2"),
    "full": ("diff", "diff_b"),
    "norm": ("w_norm", "b_norm"),
    "oft": ("oft_blocks", "rescale"),
}
FOREIGN: Mapping[str, tuple[str, ...]] = {
    "IA3": ("weight", "on_input"),
    "GLoRA": ("a1.weight", "a2.weight", "b1.weight", "b2.weight", "bm.weight"),
    "BOFT": ("boft_blocks",),
}
"""Kinds that other programs make and that are told by name, not calculated with."""
SHARED = ("alpha", "dora_scale")
KNOWN = tuple(sorted({*SHARED, *(suffix for of in (*KINDS.values(), *FOREIGN.values()) for suffix in of)}, key=len, reverse=True))
OTHER_WORDS = {
    "lora_A.weight": "lora_down.weight",
    "lora_B.weight": "lora_up.weight",
    "lora.down.weight": "lora_down.weight",
    "lora.up.weight": "lora_up.weight",
    "lora_linear_layer.down.weight": "lora_down.weight",
    "lora_linear_layer.up.weight": "lora_up.weight",
    "lora_magnitude_vector.weight": "dora_scale",
    "lora_magnitude_vector": "dora_scale",
}
"""Suffixes of PEFT and diffusers -> ours."""


def kinds_of(suffixes: Collection[str]) -> list[str]:
    """The kinds that a layer's suffixes belong to: one where all is well."""
    return [kind for kind, own in {**KINDS, **FOREIGN}.items() if any(suffix in suffixes for suffix in own)]


def missing(kind: str, suffixes: Collection[str]) -> str:
    """The first suffix that a layer of this kind lacks; empty where it is whole."""

    def needs(*names: str) -> list[str]:
        return [name for name in names if name not in suffixes]

    lacking: list[str] = []
    if kind == "lora":
        lacking = needs("lora_down.weight", "lora_up.weight")
    elif kind == "loha":
        lacking = needs("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
        if ("hada_t1" in suffixes) != ("hada_t2" in suffixes):
            lacking += needs("hada_t1", "hada_t2")
    elif kind == "lokr":
        for side in ("lokr_w1", "lokr_w2"):
            if side not in suffixes:
                lacking += needs(f"{side}_a", f"{side}_b")
    elif kind == "full":
        lacking = needs("diff")
    elif kind == "norm":
        lacking = needs("w_norm")
    elif kind == "oft":
        lacking = needs("oft_blocks")
    return lacking[0] if lacking else ""


def rank_of(kind: str, shapes: Mapping[str, Shape]) -> int:
    """The rank of a layer's network; 0 where the kind has none."""
    if kind == "lora":
        return shapes["lora_down.weight"][0]
    if kind == "loha":
        return shapes["hada_w1_b"][0]
    if kind == "lokr":
        for name in ("lokr_w2_b", "lokr_w1_b"):
            if name in shapes:
                return shapes[name][0]
    return shapes["oft_blocks"][1] if kind == "oft" else 0


def fit_of(kind: str, shapes: Mapping[str, Shape]) -> tuple[int, int]:
    """(rows, numbers) of the weight that a layer's network belongs to, as its shapes say; (0, 0) where they contradict each other."""
    if kind == "lora":
        return _lora_fit(shapes)
    if kind == "loha":
        return _loha_fit(shapes)
    if kind == "lokr":
        return _lokr_fit(shapes)
    if kind == "oft":
        blocks = shapes["oft_blocks"]
        rows = blocks[0] * blocks[1] if len(blocks) == 3 and blocks[1] == blocks[2] else 0
        return rows, 0  # it turns rows, whatever their length
    own = shapes["diff" if kind == "full" else "w_norm"]
    return (own[0], prod(own)) if own else (0, 0)


def _lora_fit(shapes: Mapping[str, Shape]) -> tuple[int, int]:
    down, up, mid = shapes["lora_down.weight"], shapes["lora_up.weight"], shapes.get("lora_mid.weight")
    flat = len(down) in (2, 4) and len(up) in (2, 4) and prod(up[2:]) == 1
    if not flat or up[1] != down[0] or (mid is not None and (len(mid) != 4 or mid[:2] != (down[0], down[0]) or prod(down[2:]) != 1)):
        return 0, 0
    return up[0], up[0] * down[1] * prod(mid[2:] if mid is not None else down[2:])


def _loha_fit(shapes: Mapping[str, Shape]) -> tuple[int, int]:
    found = set()
    for number in (1, 2):
        a, b, t = shapes[f"hada_w{number}_a"], shapes[f"hada_w{number}_b"], shapes.get(f"hada_t{number}")
        if len(a) != 2 or len(b) != 2:
            return 0, 0
        if t is None:
            found.add((a[0], a[0] * b[1]) if a[1] == b[0] else (0, 0))
        else:
            found.add((a[1], a[1] * b[1] * prod(t[2:])) if len(t) == 4 and t[:2] == (a[0], b[0]) else (0, 0))
    return found.pop() if len(found) == 1 else (0, 0)


def _lokr_fit(shapes: Mapping[str, Shape]) -> tuple[int, int]:
    rows, count = 1, 1
    for side in ("1", "2"):
        whole, a, b, t = (shapes.get(f"lokr_{word}") for word in (f"w{side}", f"w{side}_a", f"w{side}_b", f"t{side}"))
        if whole is not None:
            of = (whole[0], prod(whole)) if len(whole) >= 2 else (0, 0)
        elif a is None or b is None or len(a) != 2 or len(b) != 2:
            return 0, 0
        elif t is not None:
            of = (a[1], a[1] * b[1] * prod(t[2:])) if len(t) == 4 and t[:2] == (a[0], b[0]) else (0, 0)
        else:
            of = (a[0], a[0] * b[1]) if a[1] == b[0] else (0, 0)
        rows, count = rows * of[0], count * of[1]
    return rows, count
