"""graphremat.measure against allocations whose sizes are known, and against the mistakes that it must notice."""

import math
import time
from functools import partial
from itertools import pairwise, permutations

import pytest
import torch

from graphremat.measure import (
    MAX_MEASURED_RUNS,
    MeasurementError,
    byte_curve,
    gradient_error,
    measure_peak,
    time_interleaved,
)
from graphremat.passes.torch_private import MemoryEvent


def block(nbytes: int) -> torch.Tensor:
    return torch.empty(nbytes, dtype=torch.uint8)


def events(*signed: tuple[int, int]) -> list[MemoryEvent]:
    return [MemoryEvent(time, address, nbytes, "cpu") for time, (address, nbytes) in enumerate(signed)]


class TestPeak:
    def test_one_after_the_other_counts_once(self) -> None:
        def step() -> None:
            for _ in range(2):
                block(1_000_003)

        measured = measure_peak(step)
        assert (measured.peak_bytes, measured.end_bytes, measured.events) == (1_000_003, 0, 4)

    def test_side_by_side_counts_twice_and_leftovers_are_the_end(self) -> None:
        kept: list[torch.Tensor] = []

        def step() -> None:
            kept.append(block(700))
            passing = block(12_345)
            del passing
            kept.append(block(50))

        measured = measure_peak(step, clear=kept.clear)
        assert (measured.peak_bytes, measured.end_bytes) == (700 + 12_345, 750)

    def test_what_was_alive_before_does_not_count(self) -> None:
        before = block(1 << 20)
        assert measure_peak(before.clone).peak_bytes == 1 << 20

    def test_a_step_that_allocates_nothing(self) -> None:
        alive = block(64)
        assert measure_peak(alive.zero_) == measure_peak(lambda: None)

    def test_backward_is_counted_and_repeats_to_the_byte(self) -> None:
        model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 64))
        rows = torch.randn(512, 64)

        def step() -> None:
            model(rows).square().mean().backward()

        def clear() -> None:
            model.zero_grad(set_to_none=True)

        first, second = measure_peak(step, clear=clear), measure_peak(step, clear=clear)
        gradient_bytes = sum(4 * parameter.numel() for parameter in model.parameters())
        assert first == second
        assert first.end_bytes == gradient_bytes
        assert first.peak_bytes > 512 * 256 * 4 + gradient_bytes

    def test_old_gradients_freed_inside_the_step_are_an_error(self) -> None:
        model = torch.nn.Linear(32, 32)
        rows = torch.randn(8, 32)

        def step() -> None:
            model.zero_grad(set_to_none=True)
            model(rows).sum().backward()

        with pytest.raises(MeasurementError, match=r"allocated before it.*clear\(\)"):
            measure_peak(step)
        assert measure_peak(step, clear=lambda: model.zero_grad(set_to_none=True)).end_bytes == 4 * (
            32 * 32 + 32
        )

    def test_a_block_of_unknown_origin_freed_at_first_is_noticed_later(self) -> None:
        held = [block(4096)]

        def step() -> None:
            held.pop()
            held.append(block(4096))

        with pytest.raises(MeasurementError, match="allocated before it"):
            measure_peak(step)

    def test_lazy_state_of_the_first_runs_is_not_the_answer(self) -> None:
        cache: list[torch.Tensor] = []

        def step() -> None:
            if not cache:
                cache.append(block(10_000))
            block(10)

        assert measure_peak(step).peak_bytes == 10

    def test_a_step_that_never_repeats_is_an_error(self) -> None:
        runs: list[int] = []

        def step() -> None:
            runs.append(1)
            block(100 * len(runs))

        with pytest.raises(MeasurementError, match="no two runs in a row"):
            measure_peak(step)
        assert len(runs) == MAX_MEASURED_RUNS

    def test_another_device_is_refused(self) -> None:
        with pytest.raises(ValueError, match="meta"):
            measure_peak(lambda: None, device="meta")

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    def test_cuda(self) -> None:
        def step() -> None:
            for _ in range(2):
                torch.empty(1 << 20, dtype=torch.uint8, device="cuda")

        measured = measure_peak(step, device="cuda")
        assert (measured.peak_bytes, measured.end_bytes, measured.events) == (1 << 20, 0, 4)


class TestByteCurve:
    def test_running_sum(self) -> None:
        assert list(byte_curve(events((1, 10), (2, 5), (1, -10), (1, 7)))) == [10, 15, 5, 12]

    def test_free_of_an_unknown_block(self) -> None:
        with pytest.raises(MeasurementError, match="allocated before it"):
            list(byte_curve(events((1, 10), (2, -5))))

    def test_free_of_another_size(self) -> None:
        with pytest.raises(MeasurementError, match="10 bytes was freed as 5"):
            list(byte_curve(events((1, 10), (1, -5))))

    def test_an_address_that_is_taken(self) -> None:
        with pytest.raises(MeasurementError, match="a free was lost"):
            list(byte_curve(events((1, 10), (1, 4))))


class TestTiming:
    def test_slow_is_slower_than_fast_and_turns_are_taken(self) -> None:
        order: list[str] = []

        def step(name: str, seconds: float) -> None:
            order.append(name)
            time.sleep(seconds)

        found = time_interleaved(
            {"fast": lambda: step("fast", 0.0), "slow": lambda: step("slow", 0.01)}, rounds=12, warmup=1
        )
        warmup, *rounds = zip(order[::2], order[1::2], strict=True)
        assert warmup == ("fast", "slow")
        assert set(rounds) == {("fast", "slow"), ("slow", "fast")}
        assert found["fast"].median_seconds < 0.01 <= found["slow"].min_seconds
        for timing in found.values():
            assert timing.min_seconds == min(timing.seconds) <= timing.median_seconds
            assert timing.spread_seconds >= 0.0
            assert len(timing.seconds) == 12

    def test_each_step_runs_behind_each_other(self) -> None:
        order: list[str] = []
        steps = {name: partial(order.append, name) for name in "abc"}
        time_interleaved(steps, rounds=30, warmup=0)
        rounds = list(zip(order[::3], order[1::3], order[2::3], strict=True))
        assert all(sorted(names) == ["a", "b", "c"] for names in rounds)
        behind = {pair for names in rounds for pair in pairwise(names)}
        assert behind == set(permutations("abc", 2))

    def test_one_round_has_no_spread(self) -> None:
        timing = time_interleaved({"only": lambda: None}, rounds=1, warmup=0)["only"]
        assert timing.spread_seconds == 0.0
        assert timing.min_seconds == timing.median_seconds

    @pytest.mark.parametrize(("rounds", "warmup"), [(0, 1), (1, -1)])
    def test_senseless_counts(self, rounds: int, warmup: int) -> None:
        with pytest.raises(ValueError, match="rounds"):
            time_interleaved({"only": lambda: None}, rounds=rounds, warmup=warmup)


class TestGradientError:
    def test_is_relative_to_the_whole(self) -> None:
        reference = [torch.tensor([3.0, 0.0]), None, torch.tensor([[4.0]])]
        other = [torch.tensor([3.0, 0.0]), None, torch.tensor([[4.5]])]
        assert gradient_error(reference, other) == pytest.approx(0.1)
        assert gradient_error(reference, reference) == 0.0

    def test_zero_and_not_finite(self) -> None:
        zero, one = [torch.zeros(2)], [torch.ones(2)]
        assert gradient_error(zero, zero) == 0.0
        assert gradient_error(zero, one) == math.inf
        assert gradient_error(one, [torch.tensor([1.0, math.nan])]) == math.inf

    def test_none_must_agree(self) -> None:
        with pytest.raises(MeasurementError, match="None in the second"):
            gradient_error([torch.ones(1)], [None])
        with pytest.raises(MeasurementError, match="None in the first"):
            gradient_error([None], [torch.ones(1)])

    def test_shapes_and_lengths_must_agree(self) -> None:
        with pytest.raises(MeasurementError, match="shape"):
            gradient_error([torch.ones(2)], [torch.ones(3)])
        with pytest.raises(MeasurementError, match="1 gradients against 0"):
            gradient_error([torch.ones(2)], [])
