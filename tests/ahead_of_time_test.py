"""What programs need that are compiled ahead of time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvg_jax import ahead_of_time


@pytest.mark.parametrize(
    "message, needed",
    [
        (
            "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total "
            "memory required for HLO temporaries (17.50G) exceeds available HBM (15.75G).",
            17.5 * 2**30 + 1000,
        ),
        (
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory "
            "space hbm. Used 20.25G of 15.75G hbm. Exceeded hbm capacity by 4.50G.",
            20.25 * 2**30,
        ),
        ("INTERNAL: something else (17.5G)", None),
    ],
)
def test_what_a_program_needs_that_does_not_fit(message, needed):
    assert ahead_of_time.memory_needed(message, 1000) == needed


@given(
    fixed=st.integers(0, 20_000),
    by_image=st.integers(1, 5_000),
    bend=st.integers(0, 20),
    few=st.integers(1, 8),
)
def test_the_largest_batch_fits_and_hardly_a_larger_one_does(fixed, by_image, bend, few):
    """Where memory grows nearly in a line."""
    limit, compiled = 16_000, []

    def compile_for(images):
        compiled.append(images)
        memory = fixed + by_image * images + bend * images**2 // 100
        traffic = ahead_of_time.hlo.Traffic(1.0, {})
        return ahead_of_time.Compiled(memory, 0, traffic if memory < 15_750 else None)

    largest = ahead_of_time.largest_that_fits(compile_for, few, limit)
    assert 0 <= largest <= 16 * few and len(compiled) < 12
    assert largest == 0 or compile_for(largest).memory < 15_750
    assert largest == 16 * few or compile_for(largest + 1).memory > 0.9 * limit - by_image


@pytest.mark.slow
def test_topologies_of_every_chip_are_meshes_of_whole_chips(run_program):
    pytest.importorskip("libtpu", reason="compiles for TPUs")
    assert run_program("topologies", devices=1).split() == ["True"] * 4
