"""The collector waits inside, and afterwards is as it was."""

import gc

import pytest

from graphremat.passes.garbage import garbage_left


@garbage_left()
def fail_inside() -> None:
    with garbage_left():
        assert not gc.isenabled()
    assert not gc.isenabled()
    raise ValueError("inside")


@pytest.mark.parametrize("on", [True, False])
def test_the_collector_is_as_it_was(on: bool) -> None:
    before = gc.isenabled()
    try:
        (gc.enable if on else gc.disable)()
        with pytest.raises(ValueError, match="inside"):
            fail_inside()
        assert gc.isenabled() == on
    finally:
        (gc.enable if before else gc.disable)()


def test_it_decorates() -> None:
    assert [garbage_left()(gc.isenabled)() for _ in range(2)] == [False, False]
