"""The optimum of tiny problems by Dijkstra's algorithm over what is alive. Knows neither the replay nor a solver.

A state is: how many ops of the backward have run, and which values are there. A move runs one op of the forward again
or the next op of the backward; what has no room is dropped then, in every smallest way, since more to hold on to is
never worse. The search starts from every set of values that the forward can save under the budget.

Values that are no views stand for their views, which are made again for nothing once what else they read has been made.
"""

import heapq
import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from graphremat.passes.problem import Holder, Kind, Phase, Problem


@dataclass(frozen=True, order=True)
class _State:
    done: int
    """Ops of the backward that have run, views left out."""
    latest: int
    """The last op run again since then; -1 if none, or if their order is free."""
    alive: frozenset[int]
    original: frozenset[int]
    """Outputs of the forward whose latest result is that of the forward: the caller holds them."""
    ever: frozenset[int]
    """What has been saved or made in the backward, of the values where that alone matters."""


class _Game:
    def __init__(self, problem: Problem, budget_bytes: int, in_order: bool) -> None:
        assert not problem.fuses
        self.problem, self.budget, self.in_order = problem, budget_bytes, in_order
        ops = problem.ops
        self.again = [
            i for i, op in enumerate(ops) if op.phase is not Phase.BACKWARD and op.kind is not Kind.VIEW
        ]
        self.forward = [i for i in self.again if ops[i].phase is Phase.FORWARD]
        self.backward = [
            i for i, op in enumerate(ops) if op.phase is Phase.BACKWARD and op.kind is not Kind.VIEW
        ]
        self.of_forward = {w for i in self.again for w in ops[i].writes}
        self.outputs = {problem.base[v] for v in problem.forward_outputs} & self.of_forward
        self.wanted = {problem.base[v] for v in problem.backward_outputs}
        self.watched = {f for done in range(len(self.backward) + 1) for f in self.views_before(done)}
        self.watched |= {f for op in ops for f in self.beside(op.reads)} | self.beside(
            problem.backward_outputs
        )
        self.watched |= {w for i in self.again if ops[i].keep for w in ops[i].writes}

    def size(self, values: Iterable[int]) -> int:
        """Bytes of these buffers that are the graph's."""
        storages = [self.problem.storages[self.problem.values[v].storage] for v in values]
        return sum(s.size_bytes for s in storages if s.holder is Holder.GRAPH)

    def operands(self, index: int) -> set[int]:
        """The values of the forward, views aside, that an op reads."""
        return {self.problem.base[r] for r in self.problem.ops[index].reads} & self.of_forward

    def beside(self, reads: Iterable[int]) -> set[int]:
        """What the views behind these reads need besides what they view."""
        found: set[int] = set()
        for read in reads:
            producer = self.problem.values[read].producer
            if producer >= 0 and self.problem.ops[producer].kind is Kind.VIEW:
                inner = self.problem.ops[producer].reads
                found |= {
                    self.problem.base[r] for r in inner if self.problem.base[r] != self.problem.base[read]
                }
                found |= self.beside(inner)
        return found & self.of_forward

    def starts(self) -> Iterator[tuple[float, _State]]:
        """Seconds and state at the end of the forward for every choice of what is saved."""
        ops = self.problem.ops
        savable = [
            w for i in self.again if not ops[i].unsavable for w in ops[i].writes if w not in self.outputs
        ]
        kept = {w for w in self.outputs if not ops[self.problem.values[w].producer].unsavable}
        named = [
            w for w in savable if w in self.watched and self.problem.values[w].producer not in self.forward
        ]
        for saved, alone in itertools.product(_subsets(savable), list(_subsets(named))):
            # what is saved for the sake of having been made alone need not live to the end of the forward
            runs = self.forward_with((*saved, *alone))
            if self.forward_peak(runs, {*saved, *self.outputs}) > self.budget:
                continue
            made = {w for i in runs for w in ops[i].writes}
            ever = {w for w in made & self.watched if ops[self.problem.values[w].producer].keep}
            ever |= {w for w in made & self.watched if w in savable or w in kept}
            state = _State(0, -1, frozenset(saved), frozenset(kept), frozenset(ever))
            yield sum(ops[i].seconds for i in runs), state

    def forward_with(self, saved: Iterable[int]) -> list[int]:
        """The ops of the forward and what saved values need besides."""
        runs = set(self.forward)
        pending = [self.problem.values[v].producer for v in saved]
        while pending:
            index = pending.pop()
            if index not in runs:
                runs.add(index)
                needed = self.operands(index) | self.beside(self.problem.ops[index].reads)
                pending += [self.problem.values[v].producer for v in needed]
        return sorted(runs)

    def forward_peak(self, runs: list[int], to_end: set[int]) -> int:
        ops = self.problem.ops
        peak = 0
        for place, index in enumerate(runs):
            made = {w for i in runs[: place + 1] for w in ops[i].writes}
            later = {v for i in runs[place:] for v in self.operands(i)}
            alive = self.size((made & (later | to_end)) | set(ops[index].writes))
            peak = max(peak, alive + ops[index].scratch_bytes)
        return peak + self.problem.input_bytes

    def standing(self, done: int) -> int:
        """Bytes alive after ``done`` ops of the backward whatever was recomputed."""
        ops, base = self.problem.ops, self.problem.base
        made = {w for i in self.backward[:done] for w in ops[i].writes}
        later = {base[r] for i in self.backward[done:] for r in ops[i].reads} | self.wanted
        engine = sum(s.size_bytes for s in self.problem.storages if s.holder is Holder.ENGINE)
        return self.problem.input_bytes + engine + self.size(self.outputs) + self.size(made & later)

    def drops(self, alive: frozenset[int], needed: set[int], room: int) -> Iterator[frozenset[int]]:
        """What can stay alive beside ``needed`` in ``room`` bytes, every largest way."""
        rest = sorted(alive - needed)
        if self.size(needed) > room:
            return
        kept: list[set[int]] = []
        for count in range(len(rest), -1, -1):
            for stay in map(set, itertools.combinations(rest, count)):
                if not any(stay <= k for k in kept) and self.size(stay | needed) <= room:
                    kept.append(stay)
                    yield frozenset(stay | needed)
            if kept and kept[0] == set(rest):
                return

    def there(self, state: _State, operands: set[int], beside: set[int]) -> bool:
        return operands <= state.alive | state.original and beside <= state.ever

    def views_before(self, done: int) -> set[int]:
        """What views of the backward that stand before its next op, or after its last, need to have been made."""
        first = self.backward[done - 1] if done else -1
        last = self.backward[done] if done < len(self.backward) else len(self.problem.ops)
        views = [op for op in self.problem.ops[first + 1 : last] if op.phase is Phase.BACKWARD]
        return {
            f for op in views for f in self.beside(op.reads) | {self.problem.base[r] for r in op.reads}
        } & (self.of_forward)

    def moves(self, state: _State) -> Iterator[tuple[float, _State]]:
        ops = self.problem.ops
        room = self.budget - self.standing(state.done)
        for index in self.again:
            op, operands = ops[index], self.operands(index)
            kept_back = op.keep and (op.phase is Phase.FORWARD or set(op.writes) & state.ever)
            if kept_back or index <= state.latest or not self.there(state, operands, self.beside(op.reads)):
                continue
            original = state.original - set(op.writes)
            needed = (operands - state.original) | set(op.writes)
            ever = state.ever | (self.watched & set(op.writes))
            for alive in self.drops(state.alive - set(op.writes), needed, room - op.scratch_bytes):
                yield op.seconds, _State(state.done, index if self.in_order else -1, alive, original, ever)
        if state.done < len(self.backward):
            index = self.backward[state.done]
            beside = self.beside(ops[index].reads) | self.views_before(state.done)
            if self.there(state, self.operands(index), beside):
                needed = self.operands(index) - state.original
                left = room - self.size(ops[index].writes) - ops[index].scratch_bytes
                for alive in self.drops(state.alive, needed, left):
                    yield ops[index].seconds, _State(state.done + 1, -1, alive, state.original, state.ever)

    def over(self, state: _State) -> bool:
        if state.done < len(self.backward):
            return False
        beside = self.beside(self.problem.backward_outputs) | self.views_before(state.done)
        return self.there(state, self.wanted & self.of_forward, beside)


def _subsets(values: list[int]) -> Iterator[tuple[int, ...]]:
    return itertools.chain.from_iterable(itertools.combinations(values, n) for n in range(len(values) + 1))


def best_seconds(problem: Problem, budget_bytes: int, *, in_order: bool = False) -> float | None:
    """Seconds of the fastest plan whose peak is at most ``budget_bytes``, None if there is none.

    With ``in_order`` an op runs at most once between two ops of the backward, and ops run in the order of their indices
    there.
    """
    game = _Game(problem, budget_bytes, in_order)
    views = sum(op.seconds for op in problem.ops if op.kind is Kind.VIEW and op.phase is not Phase.EITHER)
    heap = [(seconds + views, state) for seconds, state in game.starts()]
    heapq.heapify(heap)
    settled: set[_State] = set()
    best: dict[_State, float] = {}
    while heap:
        seconds, state = heapq.heappop(heap)
        if game.over(state):
            return seconds
        if state in settled:
            continue
        settled.add(state)
        for more, following in game.moves(state):
            if following not in settled and seconds + more < best.get(following, math.inf):
                best[following] = seconds + more
                heapq.heappush(heap, (seconds + more, following))
    return None


def lowest_peak(problem: Problem, *, in_order: bool = False) -> int | None:
    """The smallest budget that some plan keeps, None if the backward cannot run under any."""
    high = 2 * sum(s.size_bytes for s in problem.storages) + max(op.scratch_bytes for op in problem.ops)
    if best_seconds(problem, high, in_order=in_order) is None:
        return None
    low = -1
    while high - low > 1:
        middle = (low + high) // 2
        if best_seconds(problem, middle, in_order=in_order) is None:
            low = middle
        else:
            high = middle
    return high
