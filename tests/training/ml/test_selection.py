"""Which pairs to label next: golden values, one by hand, one property each."""

import numpy as np
import pytest

from training.ml.selection import (
    WAYS,
    Read,
    answer_spread,
    bald,
    best_and_random,
    d_optimal,
    decision_gain,
    design,
    draw,
    i_optimal,
    in_proportion,
    n_at_random,
    pool_mean,
    uncertain_gap,
    unit_features,
)


def test_members_that_contradict_each_other_tell_a_whole_answer_and_unsure_ones_nothing():
    # 0.8 and 0.4 by hand: H(0.6) − (H(0.8) + H(0.4)) / 2 = 0.673012 − 0.586707
    probs = [[1.0, 0.5, 0.8], [0.0, 0.5, 0.4]]
    assert bald(probs).tolist() == pytest.approx([np.log(2), 0.0, 0.086305], abs=1e-6)
    rng = np.random.default_rng(0)
    p = rng.random((4, 50))
    assert bald(p) == pytest.approx(bald(1 - p))  # which side is called A says nothing
    with pytest.raises(ValueError, match="two"):
        bald(p[:1])


def test_a_known_gap_is_worth_nothing_however_large():
    assert uncertain_gap([3.0, -2.0, 0.0], [0.0, 0.5, 1.0]).tolist() == [0.0, 2.5, 1.0]
    assert uncertain_gap([-2.0], [0.5]) == uncertain_gap([2.0], [0.5])


def test_people_are_asked_most_where_the_judge_cannot_tell():
    assert answer_spread([0.5, 0.9, 1.0]).tolist() == pytest.approx([0.5, 0.3, 0.0])


def test_an_answer_shrinks_the_variance_of_the_decision_by_what_the_update_says():
    assert decision_gain(np.eye(2), [1, -1], [[1, -1]], [0.5]) == pytest.approx(2 / 3)
    rng = np.random.default_rng(1)
    half = rng.normal(size=(4, 4))
    sigma, c, d = half @ half.T, np.array([1, -1, 0, 0]), np.array([0, 1, -1, 0.0])
    after = np.linalg.inv(np.linalg.inv(sigma) + 0.21 * np.outer(d, d))
    gain = decision_gain(sigma, c, d[None], [0.3])[0]
    assert gain == pytest.approx(c @ sigma @ c - c @ after @ c)
    assert decision_gain(np.eye(4), c, [[0, 0, 1, -1]], [0.5]) == 0  # two others decide nothing


def test_d_optimal_takes_what_raises_the_determinant_most():
    order, gains = d_optimal([[2.0, 0.0], [0.0, 1.0], [2.0, 0.0]], [0.5] * 3, 2)
    assert (order, gains) == ([0, 2], pytest.approx([np.log(2), np.log(1.5)]))
    rng = np.random.default_rng(2)
    phi, p = rng.normal(size=(60, 5)), rng.random(60)
    order, gains = d_optimal(phi, p, 20, labeled=phi[:7], labeled_probs=p[:7])
    information = np.eye(5) + (phi[:7] * (p[:7] * (1 - p[:7]))[:, None]).T @ phi[:7]
    for place, gain in zip(order, gains, strict=True):
        before = np.linalg.slogdet(information)[1]
        information += p[place] * (1 - p[place]) * np.outer(phi[place], phi[place])
        assert gain == pytest.approx(np.linalg.slogdet(information)[1] - before)
    assert gains == sorted(gains, reverse=True)  # what was taken lowers the rest: submodular
    assert len(set(order)) == 20


def test_i_optimal_takes_what_lowers_the_mean_variance_most():
    assert i_optimal([[2.0]], [0.5], 1) == ([0], [0.5])  # from 1 to ½, by hand
    rng = np.random.default_rng(3)
    phi, p = rng.normal(size=(40, 4)), rng.random(40)
    w = p * (1 - p)
    target = (phi * w[:, None]).T @ phi / 40
    covariance = np.eye(4)
    for place, gain in zip(*i_optimal(phi, p, 6), strict=True):
        gains = []
        for x, weight in zip(phi, w, strict=True):
            after = np.linalg.inv(np.linalg.inv(covariance) + weight * np.outer(x, x))
            gains.append(np.trace((covariance - after) @ target))
        assert gain == pytest.approx(gains[place])
        x = phi[place]
        covariance = np.linalg.inv(np.linalg.inv(covariance) + w[place] * np.outer(x, x))


def test_features_lose_their_scale_and_keep_their_likeness():
    rng = np.random.default_rng(4)
    phi = rng.normal(size=(30, 6))
    stretched = phi * [1, 10, 100, 1e-3, 5, 7]
    assert unit_features(stretched) == pytest.approx(unit_features(phi))
    assert (unit_features(phi) ** 2).sum(axis=1).mean() == pytest.approx(1)
    assert unit_features(rng.normal(size=(20, 900))).shape == (20, 256)


def test_a_tenth_at_least_is_drawn_at_random():
    assert [n_at_random(n) for n in (1, 10, 11, 200)] == [1, 1, 2, 20]
    probs = best_and_random([3, 1, 0, 2], 4, 20)
    assert (probs == 1).sum() == 3
    assert probs[2] == pytest.approx(1 / 17)
    assert probs.sum() == pytest.approx(4)
    assert best_and_random([1, 0], 5, 2).tolist() == [1, 1]


def test_probabilities_follow_the_scores_above_a_floor():
    probs = in_proportion([0.0, 1.0, 2.0, 100.0], 2, share=0.5)
    assert probs.sum() == pytest.approx(2)
    assert probs.tolist() == pytest.approx([0.25, 0.25 + 0.25 / 3, 0.25 + 0.5 / 3, 1.0])
    assert in_proportion([0, 0, 0, 1.0], 3).sum() == pytest.approx(3)


@pytest.mark.parametrize(
    "probs", [best_and_random([4, 2, 9], 4, 12), in_proportion(np.arange(12.0), 5)]
)
def test_every_candidate_is_taken_as_often_as_its_probability_says(probs):
    taken, marked, means = np.zeros(12), np.zeros(12), []
    values = np.random.default_rng(5).random(12)
    for seed in range(3_000):
        found = draw(probs, seed)
        assert len(found.places) == round(probs.sum())
        taken[found.places] += 1
        marked += found.at_random
        means.append(pool_mean(values[found.places], probs[found.places], 12))
    four = 4 * np.sqrt(0.25 / 3_000)
    assert taken / 3_000 == pytest.approx(probs, abs=four)
    assert marked / 3_000 == pytest.approx(np.full(12, probs.min()), abs=four)  # a uniform sample
    assert np.mean(means) == pytest.approx(values.mean(), abs=4 * np.std(means) / np.sqrt(3_000))


def test_a_draw_refuses_what_could_never_be_drawn():
    with pytest.raises(ValueError, match="above 0"):
        draw([0.0, 1.0], 0)


def test_every_way_gives_probabilities_that_sum_to_the_labels():
    rng = np.random.default_rng(6)
    read = Read(rng.normal(size=(3, 40)), rng.normal(size=(40, 5)))
    labeled = Read(rng.normal(size=(3, 8)), rng.normal(size=(8, 5)))
    prompts = [place // 4 for place in range(40)]
    for way in WAYS:
        probs, scores = design(way, 10, read, labeled, prompts=prompts, worth=rng.random(40))
        assert probs.sum() == pytest.approx(10), way
        assert probs.min() > 0
        assert np.isnan(scores).all() == (way == "random")
    bald_probs, _scores = design("bald", 30, read, prompts=prompts)
    sure = [prompts[place] for place in np.flatnonzero(bald_probs == 1)]
    assert max(map(sure.count, sure)) == 2  # of one prompt no more than two


def test_where_nobody_knows_a_probability_only_the_features_count():
    rng = np.random.default_rng(7)
    gaps, phi = rng.normal(size=(1, 30)), rng.normal(size=(30, 4))
    assert np.isnan(design("near_tie", 5, Read(gaps, phi, False))[1]).any()  # scored otherwise
    random_head = [design("i_optimal", 5, Read(g, phi, False))[0] for g in (gaps, 9 * gaps)]
    assert random_head[0].tolist() == random_head[1].tolist()
    trained, _scores = design("i_optimal", 5, Read(9 * gaps, phi))
    assert trained.tolist() != random_head[0].tolist()
