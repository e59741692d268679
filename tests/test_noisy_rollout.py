"""The noise baselines: schedule and noise by hand, and that they share SaEI's sampling."""

import math

import numpy as np
import pytest
import torch

from vlm_entropy.trainers.noisy_rollout import NoisyRolloutConfig, diffuse, noise_decay, signal_shares


def config(tmp_path, **options) -> NoisyRolloutConfig:
    defaults = {"per_device_train_batch_size": 4, "num_generations": 4, "bf16": False, "use_cpu": True}
    return NoisyRolloutConfig(output_dir=str(tmp_path), **{**defaults, **options})


def test_half_of_the_noise_is_left_at_the_midpoint():
    assert noise_decay(0.5, midpoint=0.5) == 0.5
    # 1 - sigmoid(30 · (0 - 2/3)) = sigmoid(20), 1 - sigmoid(30 · 1/3) = sigmoid(-10)
    assert noise_decay(0.0) == pytest.approx(1 / (1 + math.exp(-20)), rel=1e-15)
    assert noise_decay(1.0) == pytest.approx(1 / (1 + math.exp(10)), rel=1e-15)
    assert noise_decay(0.6, midpoint=0.5, steepness=10.0) == pytest.approx(1 / (1 + math.e), rel=1e-12)


def test_the_noise_only_ever_falls():
    decays = [noise_decay(step / 50) for step in range(51)]
    assert decays == sorted(decays, reverse=True)


def test_the_signal_agrees_with_a_loop():
    share, shares = 1.0, []
    for step in range(1000):
        beta = 1e-5 + (5e-3 - 1e-5) / (1 + math.exp(6 - 12 * step / 999))
        share *= 1 - beta
        shares.append(share)
    np.testing.assert_allclose(signal_shares().numpy(), shares, rtol=1e-12)
    assert shares[500] == pytest.approx(0.745, abs=1e-3)


def test_diffusion_by_hand_and_in_the_image():
    share = signal_shares()[500].item()
    picture = torch.tensor([0.5, 0.5, 0.5, 0.0], dtype=torch.float64)
    noise = torch.tensor([0.1, 10.0, -10.0, 0.0], dtype=torch.float64)
    expected = [math.sqrt(share) * 0.5 + math.sqrt(1 - share) * 0.1, 1.0, 0.0, 0.0]
    actual = diffuse(picture, noise, step=500)
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-15)


def test_the_last_of_the_noise_is_less_than_a_grey_level():
    generator = torch.Generator().manual_seed(0)
    picture = torch.rand(10000, generator=generator)
    change = diffuse(picture, torch.randn(10000, generator=generator), step=0) - picture
    assert change.std() < 1.2 * math.sqrt(2.3e-5)  # β_0 = 1e-5 + σ(-6) · 5e-3 = 2.2e-5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": "salt"}, "noise must be 'gaussian' or 'sign', got 'salt'"),
        ({"noise_step": 1000}, "noise_step must lie in 0 to 999, got 1000"),
        ({"noise_step": -1}, "got -1"),
        ({"decay_midpoint": 40.0}, r"decay_midpoint must lie in \[0, 1\], got 40.0"),
        ({"decay_midpoint": math.nan}, "got nan"),
        ({"decay_steepness": 0.0}, "decay_steepness must be a finite number > 0, got 0.0"),
        ({"decay_steepness": math.inf}, "got inf"),
        ({"alpha": 2}, "alpha must be a float"),
        ({"clean_generations": 4}, "must be >= 1 and add up"),
    ],
)
def test_options_that_cannot_be_honoured_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **options)
    assert config(tmp_path).noise_step == 500
