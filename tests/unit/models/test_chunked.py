"""Against the naive form on the same logits, by hand, and what tensors may exist meanwhile."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from equilibrate.models.chunked import CHUNK_TOKENS, chunked_log_probs
from equilibrate.models.log_probs import token_entropies, token_log_probs


def make_case(seed=0, *, rows=2, length=7, width=3, vocabulary=11, keep=0.6, dtype=torch.float64):
    """Hidden states [B, T, D], head [V, D], bias [V], token ids and mask [B, T]."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    ids = torch.randint(vocabulary, (rows, length), generator=generator)
    mask = torch.rand(rows, length, generator=generator) < keep
    return normal(rows, length, width), normal(vocabulary, width), normal(vocabulary), ids, mask


def naive(hidden, weight, ids, mask, *, temperature=1.0, head_bias=None):
    logits = hidden @ weight.T if head_bias is None else hidden @ weight.T + head_bias
    functions = token_log_probs, token_entropies
    mask = mask & (torch.arange(mask.shape[1]) > 0)
    return [torch.where(mask, f(logits, ids, temperature=temperature), 0.0) for f in functions]


def gradients(outputs, inputs, seed=1):
    """Of a sum with random weights, the same for every caller."""
    generator = torch.Generator().manual_seed(seed)
    loss = sum(
        (torch.randn(x.shape, generator=generator, dtype=torch.float64) * x).sum() for x in outputs
    )
    return torch.autograd.grad(loss, inputs)


def test_two_words_by_hand():
    # The head turns h into logits (h, 0). After token 0, h = log 3: p = (3/4, 1/4), the token is 1.
    # Entropy: 3/4 log(4/3) + 1/4 log 4. After token 1, h = 0: both words 1/2, entropy log 2.
    hidden = torch.tensor([[[math.log(3)], [0.0], [5.0]]], requires_grad=True)
    weight = torch.tensor([[1.0], [0.0]], requires_grad=True)
    ids, mask = torch.tensor([[0, 1, 0]]), torch.tensor([[False, True, True]])
    log_probs, entropies = chunked_log_probs(hidden, weight, ids, mask)
    first = 0.75 * math.log(4 / 3) + 0.25 * math.log(4)
    torch.testing.assert_close(log_probs, torch.tensor([[0.0, math.log(1 / 4), math.log(1 / 2)]]))
    torch.testing.assert_close(entropies, torch.tensor([[0.0, first, math.log(2)]]))
    # onehot - p: (-3/4, 3/4) and (1/2, -1/2). To h through column (1, 0); to the head times h.
    log_probs.sum().backward()
    torch.testing.assert_close(hidden.grad, torch.tensor([[[-0.75], [0.5], [0.0]]]))
    torch.testing.assert_close(weight.grad, 0.75 * math.log(3) * torch.tensor([[-1.0], [1.0]]))


def test_temperature_by_hand():
    # log 9 at temperature 2 is log 3; the gradient to h is -3/4 / 2.
    hidden = torch.tensor([[[math.log(9)], [0.0]]], requires_grad=True)
    ids, mask = torch.tensor([[0, 1]]), torch.ones(1, 2, dtype=torch.bool)
    log_probs, _ = chunked_log_probs(
        hidden, torch.tensor([[1.0], [0.0]]), ids, mask, temperature=2.0
    )
    log_probs.sum().backward()
    torch.testing.assert_close(log_probs, torch.tensor([[0.0, math.log(1 / 4)]]))
    torch.testing.assert_close(hidden.grad, torch.tensor([[[-0.375], [0.0]]]))


@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(0, 3),
    length=st.integers(1, 9),
    width=st.integers(1, 5),
    vocabulary=st.integers(1, 13),
    keep=st.sampled_from([0.0, 0.3, 0.7, 1.0]),
    chunk_tokens=st.integers(1, 30),
    temperature=st.sampled_from([1.0, 0.5, 1.7]),
    has_bias=st.booleans(),
)
def test_equals_the_naive_form(
    seed, rows, length, width, vocabulary, keep, chunk_tokens, temperature, has_bias
):
    hidden, weight, bias, ids, mask = make_case(
        seed, rows=rows, length=length, width=width, vocabulary=vocabulary, keep=keep
    )
    inputs = [hidden, weight, bias] if has_bias else [hidden, weight]
    for tensor in inputs:
        tensor.requires_grad_()
    options = {"temperature": temperature, "head_bias": bias if has_bias else None}
    ours = chunked_log_probs(hidden, weight, ids, mask, **options, chunk_tokens=chunk_tokens)
    theirs = naive(hidden, weight, ids, mask, **options)
    torch.testing.assert_close(list(ours), theirs, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        gradients(ours, inputs), gradients(theirs, inputs), rtol=1e-11, atol=1e-11
    )


def test_gradient_agrees_with_finite_differences():
    hidden, weight, bias, ids, mask = make_case(rows=1, length=5, vocabulary=4, keep=1.0)
    inputs = [tensor.requires_grad_() for tensor in (hidden, weight, bias)]

    def ours(hidden, weight, bias):
        return chunked_log_probs(
            hidden, weight, ids, mask, temperature=0.7, head_bias=bias, chunk_tokens=2
        )

    assert torch.autograd.gradcheck(ours, inputs)


@pytest.mark.parametrize("vocabulary", [50, 20_000])
def test_float32_is_close_to_the_naive_form_in_float64(vocabulary):
    hidden, weight, _, ids, mask = make_case(
        length=40, width=16, vocabulary=vocabulary, dtype=torch.float32
    )
    inputs = [hidden.requires_grad_(), weight.requires_grad_()]
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    ours = chunked_log_probs(*inputs, ids, mask)
    theirs = naive(*exact, ids, mask)
    assert {x.dtype for x in ours} == {torch.float32}
    for mine, wanted in zip(
        [*ours, *gradients(ours, inputs)], [*theirs, *gradients(theirs, exact)], strict=True
    ):
        torch.testing.assert_close(mine.double(), wanted, rtol=1e-5, atol=1e-5)


def test_a_peaked_distribution_does_not_overflow():
    # Logits 1000 and -1000: certain, and 2000 nats from the other word.
    hidden = torch.tensor([[[1000.0], [1000.0], [0.0]]], requires_grad=True)
    ids, mask = torch.tensor([[0, 0, 1]]), torch.ones(1, 3, dtype=torch.bool)
    log_probs, entropies = chunked_log_probs(hidden, torch.tensor([[1.0], [-1.0]]), ids, mask)
    (log_probs + entropies).sum().backward()
    assert log_probs.tolist() == [[0.0, 0.0, -2000.0]]
    assert entropies.tolist() == [[0.0, 0.0, 0.0]]
    # onehot - p = (-1, 1), times the column (1, -1).
    assert hidden.grad.flatten().tolist() == [0.0, -2.0, 0.0]


def test_probabilities_that_underflow_leave_the_gradient_finite():
    # Logits (3, -300) times the state: p of the second word is 0 in float32, its log -303.
    hidden = torch.tensor([[[1.0], [1.0], [0.0]]], requires_grad=True)
    weight = torch.tensor([[3.0], [-300.0]], requires_grad=True)
    ids, mask = torch.tensor([[0, 0, 1]]), torch.ones(1, 3, dtype=torch.bool)
    ours, theirs = (f(hidden, weight, ids, mask) for f in (chunked_log_probs, naive))
    found, wanted = (gradients(x, [hidden, weight]) for x in (ours, theirs))
    torch.testing.assert_close(list(ours), theirs)
    torch.testing.assert_close(found, wanted)
    assert all(x.isfinite().all() for x in found)


def test_narrow_hidden_states_under_a_wide_head_are_multiplied_wide():
    hidden, weight, _, ids, mask = make_case(length=30, dtype=torch.float32)
    narrow = hidden.bfloat16()
    outputs = chunked_log_probs(narrow, weight, ids, mask)
    expected = chunked_log_probs(narrow.float(), weight, ids, mask)
    assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True))


def test_a_narrow_head_gathers_its_gradient_in_float32():
    # 600 equal tokens, one a chunk: a sum in bfloat16 stalls where one addend is below half a step.
    hidden = torch.ones(1, 601, 1, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    ids, mask = torch.zeros(1, 601, dtype=torch.int64), torch.ones(1, 601, dtype=torch.bool)
    log_probs, entropies = chunked_log_probs(hidden, weight, ids, mask, chunk_tokens=1)
    assert log_probs.dtype == entropies.dtype == torch.float32
    assert log_probs[0, 1].item() == pytest.approx(-math.log(2), rel=1e-6)
    log_probs.sum().backward()
    assert hidden.grad.dtype == weight.grad.dtype == torch.bfloat16
    # Each token adds (1/2, -1/2): 300, which bfloat16 holds.
    assert weight.grad.flatten().tolist() == [300.0, -300.0]


def test_autocast_changes_nothing():
    hidden, weight, _, ids, mask = make_case(dtype=torch.float32)
    inputs = [hidden.requires_grad_(), weight.requires_grad_()]
    expected = chunked_log_probs(*inputs, ids, mask)
    wanted = gradients(expected, inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = chunked_log_probs(*inputs, ids, mask)
        found = gradients(outputs, inputs)
    assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_chunks_do_not_change_the_result():
    hidden, weight, _, ids, mask = make_case(length=20, keep=1.0)
    inputs = [hidden.requires_grad_(), weight.requires_grad_()]
    whole = chunked_log_probs(*inputs, ids, mask, chunk_tokens=10_000)
    wanted = gradients(whole, inputs)
    for chunk_tokens in (1, 3, 19, 38):
        outputs = chunked_log_probs(*inputs, ids, mask, chunk_tokens=chunk_tokens)
        torch.testing.assert_close(outputs, whole)
        torch.testing.assert_close(gradients(outputs, inputs), wanted)


def test_dropped_tokens_have_no_say():
    hidden, weight, _, ids, mask = make_case()
    mask[:, 0] = True
    expected = chunked_log_probs(hidden, weight, ids, mask)
    # A state is read if the token after it is kept.
    read = torch.nn.functional.pad(mask[:, 1:], (0, 1))
    spoiled = torch.where(read[..., None], hidden, math.nan).requires_grad_()
    weight.requires_grad_()
    unknown = torch.where(mask, ids, -100)
    unknown[:, 0] = -100
    log_probs, entropies = chunked_log_probs(spoiled, weight, unknown, mask)
    assert torch.equal(log_probs, expected[0])
    assert torch.equal(entropies, expected[1])
    (log_probs + entropies).sum().backward()
    assert torch.all(spoiled.grad[~read] == 0)
    assert torch.all(spoiled.grad[read] != 0)
    assert weight.grad.isfinite().all()


@pytest.mark.parametrize(("rows", "length", "keep"), [(2, 4, 0.0), (2, 1, 1.0), (0, 4, 1.0)])
def test_nothing_to_compute(rows, length, keep):
    hidden, weight, bias, ids, mask = make_case(rows=rows, length=length, keep=keep)
    inputs = [tensor.requires_grad_() for tensor in (hidden, weight, bias)]
    outputs = chunked_log_probs(hidden, weight, ids, mask, head_bias=bias)
    assert all(x.shape == ids.shape and torch.all(x == 0) for x in outputs)
    found = gradients(outputs, inputs)
    assert all(torch.all(g == 0) and g.shape == x.shape for g, x in zip(found, inputs, strict=True))


def test_one_token():
    hidden, weight, _, ids, _ = make_case(rows=1, length=2)
    mask = torch.tensor([[False, True]])
    torch.testing.assert_close(
        list(chunked_log_probs(hidden, weight, ids, mask)), naive(hidden, weight, ids, mask)
    )


def test_hidden_states_may_lie_anyhow_in_memory():
    hidden, weight, _, ids, mask = make_case()
    strided = hidden.transpose(0, 2).contiguous().transpose(0, 2).requires_grad_()
    turned = weight.T.contiguous().T.requires_grad_()
    assert not strided.is_contiguous()
    assert not turned.is_contiguous()
    plain = [hidden.requires_grad_(), weight.requires_grad_()]
    ours = chunked_log_probs(strided, turned, ids, mask)
    theirs = chunked_log_probs(*plain, ids, mask)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradients(ours, [strided, turned]), gradients(theirs, plain))


def test_a_tied_head_gathers_both_gradients():
    _, weight, _, ids, mask = make_case()
    table = nn.Embedding.from_pretrained(weight, freeze=False)
    for function in (chunked_log_probs, naive):
        table.zero_grad()
        sum(x.sum() for x in function(table(ids).tanh(), table.weight, ids, mask)).backward()
        if function is chunked_log_probs:
            ours = table.weight.grad.clone()
    torch.testing.assert_close(ours, table.weight.grad)


@pytest.mark.parametrize("trained", [0, 1, 2])
def test_what_is_frozen_gets_no_gradient(trained):
    hidden, weight, bias, ids, mask = make_case()
    inputs = [hidden, weight, bias]
    inputs[trained].requires_grad_()
    ours = chunked_log_probs(hidden, weight, ids, mask, head_bias=bias)
    theirs = naive(hidden, weight, ids, mask, head_bias=bias)
    (found,), (wanted,) = (gradients(x, inputs[trained]) for x in (ours, theirs))
    torch.testing.assert_close(found, wanted)
    ours = chunked_log_probs(hidden, weight, ids, mask, head_bias=bias)
    ours[0].sum().backward()
    assert [x.grad is not None for x in inputs] == [i == trained for i in range(3)]


@pytest.mark.parametrize("read", [0, 1])
def test_a_loss_may_read_one_output_only(read):
    hidden, weight, _, ids, mask = make_case()
    inputs = [hidden.requires_grad_(), weight.requires_grad_()]
    ours, theirs = (f(*inputs, ids, mask)[read] for f in (chunked_log_probs, naive))
    torch.testing.assert_close(gradients([ours], inputs), gradients([theirs], inputs))


def test_no_second_derivative():
    hidden, weight, _, ids, mask = make_case()
    hidden.requires_grad_()
    log_probs, _ = chunked_log_probs(hidden, weight, ids, mask)
    # A linear loss, where torch's own guard would say nothing.
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(log_probs.sum(), hidden, create_graph=True)


def test_shapes_and_chunks_are_checked():
    hidden, weight, bias, ids, mask = make_case()
    for wrong in (
        (hidden[0], weight, ids, mask),
        (hidden, weight[0], ids, mask),
        (hidden[..., :2], weight, ids, mask),
        (hidden, weight, ids[:, 1:], mask),
        (hidden, weight, ids, mask[:, 1:]),
    ):
        with pytest.raises(ValueError, match=r"must be hidden \[B, T, D\]"):
            chunked_log_probs(*wrong)
    with pytest.raises(ValueError, match=r"head_bias \[10\] must be"):
        chunked_log_probs(hidden, weight, ids, mask, head_bias=bias[1:])
    with pytest.raises(ValueError, match=r"chunk_tokens \(0\) must be at least 1"):
        chunked_log_probs(hidden, weight, ids, mask, chunk_tokens=0)


class LargestTensor(TorchDispatchMode):
    """Numbers in the largest tensor that any operation made, of those that run inside."""

    largest = num_operations = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.num_operations += 1
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, tensor.numel())
        return made


def largest_tensors(function, inputs, **options) -> tuple[int, int]:
    """Numbers in the largest tensor made forward or backward, and in the largest one kept between.

    Views of an input count as made, so that the head itself sets a floor.
    """
    kept = []
    with (
        LargestTensor() as made,
        torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: kept.append(tensor.numel()) or tensor, lambda tensor: tensor
        ),
    ):
        sum(x.sum() for x in function(*inputs, **options)).backward()
    return made.largest, max(kept)


def test_no_tensor_of_all_tokens_and_words_exists():
    hidden, weight, _, ids, mask = make_case(rows=4, length=51, vocabulary=90, keep=1.0)
    inputs = [hidden.requires_grad_(), weight.requires_grad_(), ids, mask]
    # 200 kept tokens x 90 words; 8 tokens x 90 words; all states 4 x 51 x 3; the head 90 x 3.
    logits, chunk, states, head = 200 * 90, 8 * 90, 612, 270
    assert largest_tensors(chunked_log_probs, inputs, chunk_tokens=8) == (chunk, states - 12)
    assert chunk > max(states, head)
    made, kept = largest_tensors(naive, inputs)
    assert min(made, kept) >= logits


def test_dropped_tokens_never_reach_the_head():
    hidden, weight, _, ids, mask = make_case(rows=4, length=51, vocabulary=90, keep=1.0)
    mask[:] = False
    mask[2, 10:15] = True
    inputs = [hidden.requires_grad_(), weight.requires_grad_(), ids, mask]
    hidden_numbers, five_tokens = 612, 5 * 90
    assert five_tokens < hidden_numbers
    assert largest_tensors(chunked_log_probs, inputs)[0] == hidden_numbers
    weight_only = [hidden.detach()[:, :20], weight, ids[:, :20], mask[:, :20]]
    assert CHUNK_TOKENS > 5
    assert largest_tensors(chunked_log_probs, weight_only)[0] == five_tokens


def test_an_unread_entropy_costs_nothing_backward():
    hidden, weight, _, ids, mask = make_case(rows=1, length=41, keep=1.0)
    hidden.requires_grad_()
    num_operations = []
    for read in (1, 2):
        outputs = chunked_log_probs(hidden, weight, ids, mask, chunk_tokens=1)[:read]
        with LargestTensor() as made:
            sum(x.sum() for x in outputs).backward()
        num_operations.append(made.num_operations)
    # log p + H, its product and its difference, for each of 40 chunks.
    assert num_operations[1] - num_operations[0] >= 3 * 40
