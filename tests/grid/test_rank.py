"""The ranking, on pictures that are made up: it needs no model."""

from __future__ import annotations

import statistics

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lora_trainer.grid.rank import (
    MAX_CELLS,
    PROMPTS,
    SEEDS,
    CellLatents,
    distances,
    make_baseline,
    measure,
    rank,
    rms_distances,
    seed_error,
    shortlist,
    standard_error,
)


def shapes(count: int, seed: int) -> Tensor:
    """Different pictures [count, 4, 8, 8]."""
    return torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def near(pictures: Tensor, noise: float, seed: int) -> Tensor:
    """The same pictures, a little different."""
    return pictures + noise * shapes(len(pictures), seed)


class Bench:
    """A concept with held-out and training pictures, and a base that does not know it."""

    def __init__(self, held: int = 6, training: int = 6) -> None:
        concept = shapes(1, 1)
        self.held = near(concept.expand(held, -1, -1, -1), 0.4, 2)
        self.training = near(concept.expand(training, -1, -1, -1), 0.4, 3)
        self.base = CellLatents(shapes(SEEDS, 4), shapes(2 * PROMPTS, 5))

    def drawn(self, *, likeness: float, wrecked: float, seed: int) -> CellLatents:
        """Pictures between the base's own and the concept, and others changed by so much."""
        pictures = near(self.held[:1].expand(SEEDS, -1, -1, -1), 0.4, seed)
        concept = likeness * pictures + (1 - likeness) * self.base.concept
        return CellLatents(concept, near(self.base.others, wrecked, seed + 1))

    def ranking(self, cells: dict, losses: dict):
        references = self.held if len(self.held) >= 4 else self.training
        scale = make_baseline(self.base, references, self.training if references is self.held else None)
        are_training = references is self.training
        return rank(
            {cell: measure(drawn, self.base, references, are_training=are_training) for cell, drawn in cells.items()}, scale, losses
        )


LOSSES = {1: 0.06, 2: 0.05, 3: 0.04}


def test_the_best_cell_is_found_where_the_loss_would_have_taken_another():
    bench = Bench()
    ranking = bench.ranking(
        {
            (3, 1.0): bench.drawn(likeness=1.0, wrecked=3.0, seed=10),  # lowest loss: learnt, and everything else forgotten
            (3, 0.6): bench.drawn(likeness=0.3, wrecked=0.5, seed=20),
            (2, 1.0): bench.drawn(likeness=0.9, wrecked=0.2, seed=30),  # the one
            (1, 1.0): bench.drawn(likeness=0.1, wrecked=0.1, seed=40),
        },
        LOSSES,
    )
    assert ranking.best is not None and ranking.best.cell == (2, 1.0)
    assert ranking.sure == "sure" and ranking.margin is not None and ranking.margin > 2
    assert ranking.overtrained is True


def test_no_cell_is_best_when_the_pictures_are_those_of_the_base():
    bench = Bench()
    ranking = bench.ranking({(3, 1.0): bench.base, (2, 1.0): bench.base}, LOSSES)
    assert ranking.best is None
    assert "No cell shows the concept" in str(ranking.because[0])


def weak(bench: Bench, share: float) -> CellLatents:
    """Pictures a little on their way to the concept, others changed somewhat."""
    return bench.drawn(likeness=share, wrecked=0.7, seed=60)


def wrong(bench: Bench) -> CellLatents:
    """Pictures of something else, others as they were."""
    return CellLatents(shapes(SEEDS, 100), near(bench.base.others, 0.1, 9))


RISING = {1: 0.04, 2: 0.05, 3: 0.06}


@pytest.mark.parametrize(
    ("cells", "losses", "kind", "remedy", "words"),
    [
        (lambda bench: [bench.base, bench.base], LOSSES, "too-little", "higher-rate", "hardly differ"),
        (lambda bench: [near_base(bench, 0.05), bench.base], {}, "too-little", "higher-rate", "hardly differ"),
        (lambda bench: [wrong(bench), wrong(bench)], LOSSES, "captions", "captions", "trigger word"),
        (lambda bench: [wrong(bench), wrong(bench)], RISING, "too-much", "lower-rate", "rises after epoch 1"),
        (
            lambda bench: [bench.drawn(likeness=0.0, wrecked=3.0, seed=70), bench.base],
            LOSSES,
            "too-much",
            "lower-weights",
            "other prompts keep only",
        ),
        (lambda bench: [weak(bench, 0.1), bench.base], LOSSES, "too-little", "more-epochs", "come nearer"),
    ],
)
def test_without_a_best_it_is_said_what_it_looks_like(cells, losses, kind, remedy, words):
    bench = Bench()
    drawn = cells(bench)
    ranking = bench.ranking({(3, 1.0): drawn[0], (2, 1.0): drawn[1]}, losses or {2: None, 3: None})
    assert ranking.best is None and ranking.diagnosis is not None
    assert (ranking.diagnosis.kind, ranking.diagnosis.remedy) == (kind, remedy) and words in str(ranking.diagnosis.because)


def near_base(bench: Bench, noise: float) -> CellLatents:
    return CellLatents(near(bench.base.concept, noise, 8), near(bench.base.others, noise, 9))


def test_copies_look_trained_too_much():
    bench = Bench(held=0)
    copies = CellLatents(bench.training.repeat(3, 1, 1, 1)[:SEEDS], bench.base.others)
    diagnosis = bench.ranking({(3, 1.0): copies}, LOSSES).diagnosis
    assert diagnosis is not None and diagnosis.kind == "too-much" and "copies" in str(diagnosis.because)


def test_a_best_cell_needs_no_diagnosis():
    bench = Bench()
    assert bench.ranking({(2, 1.0): bench.drawn(likeness=0.9, wrecked=0.2, seed=30)}, {2: 0.05}).diagnosis is None


@pytest.mark.parametrize("seed", range(5))
def test_chance_does_not_win(seed):
    bench = Bench()
    other = CellLatents(shapes(SEEDS, 100 + seed), bench.base.others)
    assert bench.ranking({(3, 1.0): other}, LOSSES).best is None


def test_empty_pictures_are_no_likeness():
    bench = Bench()
    empty = CellLatents(torch.zeros(SEEDS, 4, 8, 8), bench.base.others)
    ranking = bench.ranking({(3, 1.0): empty}, LOSSES)
    assert ranking.best is None and ranking.scores[0].likeness == 0


def test_copies_of_training_pictures_cannot_win_where_nothing_was_held_back():
    bench = Bench(held=3)
    copies = CellLatents(near(bench.training.repeat(3, 1, 1, 1)[:SEEDS], 0.01, 7), bench.base.others)
    honest = bench.drawn(likeness=0.8, wrecked=0.2, seed=50)
    ranking = bench.ranking({(3, 1.0): copies, (2, 1.0): honest}, LOSSES)
    by_cell = {score.cell: score for score in ranking.scores}
    assert by_cell[3, 1.0].copies and not by_cell[2, 1.0].copies
    assert ranking.best is not None and ranking.best.cell == (2, 1.0)
    assert any("copies training pictures" in str(message) for message in ranking.because)


def test_only_copies_means_no_best():
    bench = Bench(held=0)
    copies = CellLatents(bench.training.repeat(3, 1, 1, 1)[:SEEDS], bench.base.others)
    ranking = bench.ranking({(3, 1.0): copies}, LOSSES)
    assert ranking.best is None and "copying" in str(ranking.because[0])


def test_equals_are_called_close():
    bench = Bench()
    ranking = bench.ranking(
        {(2, 1.0): bench.drawn(likeness=0.8, wrecked=0.3, seed=60), (3, 1.0): bench.drawn(likeness=0.8, wrecked=0.3, seed=70)}, LOSSES
    )
    assert ranking.sure == "close"
    assert any("as good within the error" in str(message) for message in ranking.because)


def test_a_last_epoch_that_is_as_good_is_not_called_over_trained():
    bench = Bench()
    cells = {(epoch, 1.0): bench.drawn(likeness=0.8, wrecked=0.3, seed=80) for epoch in (2, 3)}
    assert bench.ranking(cells, LOSSES).overtrained is False


def test_a_risen_validation_loss_says_over_trained():
    bench = Bench()
    cells = {(epoch, 1.0): bench.drawn(likeness=0.8, wrecked=0.3, seed=80) for epoch in (2, 3)}
    assert bench.ranking(cells, {2: 0.04, 3: 0.05}).overtrained is True


# the shortlist


def test_the_shortlist_is_the_lowest_loss_with_its_neighbours_in_weight_and_the_last_epoch():
    losses = {1: 0.5, 2: 0.3, 3: 0.31, 4: 0.4}
    assert shortlist(losses, [0.2, 0.4, 0.6, 0.8, 1.0]) == [(2, 1.0), (4, 1.0), (2, 0.8), (2, 0.6), (3, 1.0), (3, 0.8)]


def test_without_validation_the_shortlist_is_spread_over_the_run():
    cells = shortlist(dict.fromkeys(range(1, 9)), [0.8, 1.0])
    assert cells == [(8, 1.0), (8, 0.8), (6, 1.0), (6, 0.8), (4, 1.0), (4, 0.8)]


@given(
    st.dictionaries(st.integers(1, 30), st.none() | st.floats(0.001, 1), max_size=12),
    st.lists(st.sampled_from([-1.0, 0.0, 0.2, 0.5, 0.8, 1.0, 1.3]), max_size=7),
)
def test_a_shortlist_holds_at_most_six_different_cells_of_the_grid(losses, weights):
    cells = shortlist(losses, weights)
    assert len(cells) == len(set(cells)) <= MAX_CELLS
    assert all(epoch in losses and weight in weights and weight for epoch, weight in cells)
    assert bool(cells) == bool(losses and any(weights))


# the arithmetic


def test_distance_is_one_less_correlation():
    one, other = shapes(2, 8)[:, :1], shapes(3, 9)[:, :1]
    expected = [[1 - np.corrcoef(a.flatten(), b.flatten())[0, 1] for b in other.numpy()] for a in one.numpy()]
    assert distances(one, other).numpy() == pytest.approx(np.array(expected), abs=1e-5)


def test_apart_is_the_root_of_the_mean_squared_difference():
    one, other = shapes(2, 8), shapes(3, 9)
    expected = [[float(((a - b) ** 2).mean()) ** 0.5 for b in other] for a in one]
    assert rms_distances(one, other).numpy() == pytest.approx(np.array(expected), abs=1e-4)


def test_standard_error_is_the_deviation_by_the_root_of_the_count():
    values = [0.3, 0.1, 0.7, 0.4]
    assert standard_error(values) == pytest.approx(statistics.stdev(values) / 2)


def test_what_differs_between_prompts_is_no_error():
    of_prompts = [float(number) for number in range(PROMPTS)]
    assert seed_error(of_prompts * 2) == 0.0
    noise = [0.1] * PROMPTS + [-0.1] * PROMPTS
    values = [prompt + error for prompt, error in zip(of_prompts * 2, noise, strict=True)]
    assert seed_error(values) == pytest.approx(0.1 / PROMPTS**0.5)
