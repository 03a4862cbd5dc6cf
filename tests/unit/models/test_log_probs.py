import math

import pytest
import torch

from equilibrate.models.log_probs import token_entropies, token_log_probs


def logits(seed=0, shape=(2, 5, 7), dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_log_probs_by_hand():
    # after token 0 the model says p = (1/4, 3/4); the next token is 1
    out = token_log_probs(torch.tensor([[[0.0, math.log(3)], [5.0, 5.0]]]), torch.tensor([[0, 1]]))
    torch.testing.assert_close(out, torch.tensor([[0.0, math.log(0.75)]]))


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_log_probs_equal_shifted_log_softmax(temperature):
    ids = torch.tensor([[0, 3, 6, 1, 2], [4, 4, 0, 5, 6]])
    expected = (logits() / temperature).log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None])
    out = token_log_probs(logits(), ids, temperature=temperature)
    torch.testing.assert_close(out[:, 1:], expected[..., 0])
    assert torch.all(out[:, 0] == 0)


def test_later_logits_do_not_touch_earlier_log_probs():
    ids = torch.tensor([[0, 3, 6, 1, 2]])
    changed = logits(shape=(1, 5, 7))
    before = token_log_probs(changed, ids)
    changed[:, 3] += torch.arange(7.0)
    after = token_log_probs(changed, ids)
    assert torch.equal(before[:, :4], after[:, :4])
    assert before[0, 4] != after[0, 4]


def test_reduction_is_at_least_float32():
    ids = torch.zeros(1, 3, dtype=torch.int64)
    for given, wanted in (
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ):
        x = torch.zeros(1, 3, 50_000, dtype=given)
        assert token_log_probs(x, ids).dtype == wanted
        assert token_entropies(x, ids).dtype == wanted
        # bfloat16 would round log 50000 = 10.8198 to 10.8125
        assert token_log_probs(x, ids)[0, 1].item() == pytest.approx(-math.log(50_000), rel=1e-6)


def test_gradient_agrees_with_finite_differences():
    ids = torch.tensor([[0, 3, 2]])
    x = logits(shape=(1, 3, 4)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: token_log_probs(x, ids, temperature=0.7), x)
    assert torch.autograd.gradcheck(lambda x: token_entropies(x, ids, temperature=0.7), x)


def test_entropy_of_uniform_certain_and_partly_excluded_tokens():
    x = torch.tensor(
        [
            [
                [0.0] * 4,
                [0.0, -math.inf, -math.inf, -math.inf],
                [1.0, 1.0, -math.inf, -math.inf],
                [0.0] * 4,
            ]
        ]
    )
    out = token_entropies(x, torch.zeros(1, 4, dtype=torch.int64))
    torch.testing.assert_close(out, torch.tensor([[0.0, math.log(4), 0.0, math.log(2)]]))


def test_temperature_flattens_the_entropy():
    ids = torch.zeros(2, 5, dtype=torch.int64)
    hot, cold = (token_entropies(logits(), ids, temperature=t) for t in (2.0, 0.5))
    assert torch.all(hot[:, 1:] > cold[:, 1:])


@pytest.mark.parametrize("function", [token_log_probs, token_entropies])
def test_shapes_are_checked(function):
    with pytest.raises(ValueError, match=r"must be \[B, T, V\]"):
        function(torch.zeros(1, 3, 5), torch.zeros(1, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"must be \[B, T, V\]"):
        function(torch.zeros(1, 3), torch.zeros(1, 3, dtype=torch.int64))


def test_a_single_token_has_nothing_to_predict_it():
    out = token_log_probs(torch.zeros(2, 1, 5), torch.zeros(2, 1, dtype=torch.int64))
    assert out.tolist() == [[0.0], [0.0]]


def test_empty_batch_is_safe():
    ids = torch.zeros(0, 3, dtype=torch.int64)
    assert token_log_probs(torch.zeros(0, 3, 5), ids).shape == (0, 3)
    assert token_entropies(torch.zeros(0, 3, 5), ids).shape == (0, 3)


def test_the_last_position_has_no_gradient_whatever_it_holds():
    ids = torch.tensor([[0, 3, 2]])
    x = logits(shape=(1, 3, 4)).requires_grad_()
    token_log_probs(x, ids).sum().backward()
    assert torch.all(x.grad[:, -1] == 0)
    assert torch.all(x.grad[:, :-1] != 0)


def test_entropy_has_a_gradient_where_probabilities_underflow():
    # The second word has p = e^-200, 0 in float32: H = 0, and so is its slope, -p (log p + H).
    x = torch.tensor([[[0.0, -200.0], [0.0, 0.0]]], requires_grad=True)
    entropies = token_entropies(x, torch.zeros(1, 2, dtype=torch.int64))
    entropies.sum().backward()
    assert entropies.tolist() == [[0.0, 0.0]]
    assert torch.equal(x.grad, torch.zeros(1, 2, 2))


def test_entropy_has_a_gradient_beside_an_excluded_token():
    x = torch.tensor([[[0.0, math.log(3), -math.inf], [0.0, 0.0, 0.0]]], requires_grad=True)
    token_entropies(x, torch.zeros(1, 2, dtype=torch.int64)).sum().backward()
    # p = 1/4, 3/4; -p (log p + H) with log(1/4) + H = -3/4 log 3 and log(3/4) + H = 1/4 log 3
    slope = 3 / 16 * math.log(3)
    torch.testing.assert_close(x.grad[0, 0], torch.tensor([slope, -slope, 0.0]))
