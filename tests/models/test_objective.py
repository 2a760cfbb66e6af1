"""The objective of stage 2, which the bundled pair's training and users' fine-tuning share, against the same written out by hand."""

from __future__ import annotations

import pytest
import torch

from duogen.finetune import stages
from duogen.train import dit
from duogen.train.objective import GATE_WEIGHT, FlowObjective, Prediction

WEIGHT = torch.tensor([0.5, 1.0, 1.5]).view(1, 3, 1, 1)


def test_both_trainings_have_one_objective():
    assert stages.FlowObjective is dit.FlowObjective is FlowObjective


def test_what_is_new_in_a_frame_counts_more_the_smaller_it_is():
    objective = FlowObjective(torch.ones(1), focus=0.5)
    frames = torch.zeros(3, 1, 8, 4, 4)
    frames[1:, :, :, 0] = 5.0
    frames[2, :, :, 1:3, 2] = 5.0
    wrong = Prediction(torch.ones(1, 8, 4, 4))
    costs = []
    for time in range(3):
        moved = objective.find_moved(frames[time], frames[time - 1] if time else None)
        costs.append(float(objective.compute_error(wrong, torch.zeros(1, 8, 4, 4), torch.zeros(1), moved, time == 0)))
    assert costs == pytest.approx([1.0, 1 + 0.5, 1 + 0.5])  # as much in all, so each of two new places counts twice what each of four does
    moved = objective.find_moved(frames[2], frames[1])
    assert moved.sum() == 2 and moved[0, 1:3, 2].all()
    here = Prediction(torch.where(moved[:, None], 1.0, 0.0).expand(1, 8, 4, 4))
    cost = objective.compute_error(here, torch.zeros(1, 8, 4, 4), torch.zeros(1), moved, False)
    assert float(cost) == pytest.approx((1 + 0.5 * 8) * 2 / 16)


@pytest.mark.parametrize("prediction", ["sample", "velocity"])
def test_an_error_is_that_of_what_the_pair_predicts(prediction):
    objective = FlowObjective(WEIGHT, prediction)
    target, noise, out = torch.randn(3, 2, 3, 4, 4).unbind(0)
    moved = torch.ones(2, 4, 4, dtype=torch.bool)
    error = objective.compute_error(Prediction(out), target, noise, moved, True)
    goal = target if prediction == "sample" else noise - target
    by_hand = [sum(float(WEIGHT[0, c]) * float((out - goal)[b, c].square().mean()) for c in range(3)) / 3 for b in range(2)]
    assert error.tolist() == pytest.approx(by_hand, rel=1e-5)
    sigma = torch.tensor([1.0, 0.8, 0.1])
    assert objective.weigh_targets(sigma).tolist() == pytest.approx([1, 1.5625, 2.0] if prediction == "sample" else [1, 1, 1])


def test_the_noise_is_as_the_pair_is_used():
    """Even up to pure noise where words settle a picture; in the middle for a velocity, as published models are trained."""
    even = FlowObjective(torch.ones(1), "sample", shift=8.0).draw_sigmas(20000, torch.Generator().manual_seed(0))
    middle = FlowObjective(torch.ones(1), "velocity", shift=1.0).draw_sigmas(20000, torch.Generator().manual_seed(0))
    assert float((even > 0.9).float().mean()) == pytest.approx(0.47, abs=0.02)
    assert float((middle > 0.9).float().mean()) < 0.02 and float(middle.median()) == pytest.approx(0.5, abs=0.02)


def test_a_copy_gate_mixes_and_is_judged():
    objective = FlowObjective(WEIGHT, has_gate=True)
    before, frame = torch.randn(2, 1, 3, 2, 2).unbind(0)
    gate = torch.zeros(1, 2, 2, 2)
    gate[0, 0] = torch.tensor([[30.0, -30.0], [30.0, -30.0]])
    made = objective.read_output(torch.cat([frame, gate], 1), before, 3)
    assert torch.allclose(made.frame[..., 0], frame[..., 0]) and torch.allclose(made.frame[..., 1], before[..., 1])
    moved = torch.tensor([[[True, False], [True, False]]])
    target = objective.choose_target(frame, before, moved)
    right = objective.compute_error(made, target, torch.zeros(1), moved, False)
    flipped = objective.compute_error(made, target, torch.zeros(1), ~moved, False)
    assert float(right) < 1e-4 and float(flipped) == pytest.approx(GATE_WEIGHT * 30.0, rel=0.3)
    first = objective.read_output(torch.cat([frame, gate], 1), None, 3)
    assert first.logit is None and torch.equal(first.frame, frame), "a first frame has nothing to copy"


def test_frames_of_other_sizes_have_nothing_to_copy():
    objective = FlowObjective(WEIGHT, has_gate=True)
    frame, other = torch.randn(1, 3, 4, 4), torch.randn(1, 3, 2, 4)
    moved = objective.find_moved(frame, other)
    assert moved.all() and torch.equal(objective.choose_target(frame, other, moved), frame)
