"""The average of a policy's iterates, by hand."""

import torch

from equilibrate.learning.average import WeightAverage


def weights(value: float):
    return [("w", torch.full((2,), value)), ("b", torch.full((1,), -value))]


def test_three_iterates_by_hand():
    average = WeightAverage(0.9, weights(1.0), keeps=True)
    average.update(weights(2.0))  # 0.9 * 1 + 0.1 * 2 = 1.1
    average.update(weights(0.1))  # 0.9 * 1.1 + 0.1 * 0.1 = 1.0
    found = dict(average.named_weights())
    torch.testing.assert_close(found["w"], torch.full((2,), 1.0))
    torch.testing.assert_close(found["b"], torch.full((1,), -1.0))


def test_without_memory_it_is_the_last_one():
    average = WeightAverage(0.0, weights(1.0), keeps=True)
    average.update(weights(5.0))
    assert dict(average.named_weights())["w"].tolist() == [5.0, 5.0]


def test_it_keeps_its_own_copy():
    start = torch.zeros(1)
    average = WeightAverage(0.5, [("w", start)], keeps=True)
    start += 8
    average.update([("w", start.bfloat16())])
    assert dict(average.named_weights())["w"].tolist() == [4.0]
    assert dict(average.named_weights())["w"].dtype == torch.float32


def test_it_goes_on_from_what_was_saved(tmp_path):
    average = WeightAverage(0.9, weights(1.0), keeps=True)
    average.update(weights(3.0))
    average.save(tmp_path)
    again = WeightAverage(0.9, weights(7.0), keeps=True)
    again.load(tmp_path)
    for one in (average, again):
        one.update(weights(-2.0))
    first, second = dict(average.named_weights()), dict(again.named_weights())
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_other_ranks_only_take_part(tmp_path):
    seen = []

    def gathered():
        for name, tensor in weights(1.0):
            seen.append(name)
            yield name, tensor

    average = WeightAverage(0.9, gathered(), keeps=False)
    average.update(gathered())
    average.save(tmp_path)
    average.load(tmp_path)
    assert seen == ["w", "b"] * 2
    assert not list(average.named_weights())
    assert not list(tmp_path.iterdir())
