import jax

from nvg_jax import hardware


def test_no_peak_is_made_up():
    """Tests run on CPUs, which have no published one."""
    assert hardware.chip(jax.devices()[0]) is None
    assert hardware.peak_flops() is None


def test_figures_are_those_of_the_makers():
    for name, flops, gib in (
        ("TPU v4", 275e12, 32),
        ("TPU v5 lite", 197e12, 16),
        ("TPU v5", 459e12, 95),
        ("TPU v6 lite", 918e12, 32),
    ):
        chip = hardware.CHIPS[name]
        assert chip.flops == flops and chip.memory == gib * 2**30
        # All of these compute hundreds of operations in the time that a byte takes.
        assert 150 < chip.flops / chip.memory_bandwidth < 600
        assert chip.link_bandwidth < chip.memory_bandwidth
