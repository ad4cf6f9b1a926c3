"""Placeholder until the library workloads land."""

from collections.abc import Callable, Mapping

from bench.contest.workload import Workload

LIBRARIES: Mapping[str, Callable[[str], Workload]] = {}
