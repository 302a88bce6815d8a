"""Traffic of compiled programs against what can be counted by hand."""

import jax
import jax.numpy as jnp
import pytest

from nvg_jax import hlo

SIDE = 256
BYTES = 4 * SIDE * SIDE


def traffic_of(function, *shapes):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return hlo.traffic(jax.jit(function).lower(*arguments).compile().as_text())


def test_an_elementwise_program_reads_and_writes_once():
    traffic = traffic_of(lambda a, b: jnp.tanh(a + b) * a, (SIDE, SIDE), (SIDE, SIDE))
    assert traffic.memory_bytes == 3 * BYTES
    assert traffic.collectives == {} and traffic.collective_bytes == 0


@pytest.mark.parametrize("length", [3, 30])
def test_a_loop_counts_as_often_as_it_runs_and_slices_as_slices(length):
    def stack(x, weights):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]

    traffic = traffic_of(stack, (SIDE, SIDE), (length, SIDE, SIDE))
    # Each round reads x and a weight and writes x; more, where its product is not fused.
    assert 3 * length * BYTES <= traffic.memory_bytes <= 10 * length * BYTES + 4 * BYTES


# What XLA writes for a TPU: a loop of known length whose body gathers a weight in two parts and
# adds up a gradient; one gather beside other work; and arrays that stay on the chip.
_PROGRAM = """
HloModule jit_step, is_scheduled=true

%fused_slice (p0: f32[4,8,128], p1: s32[]) -> f32[1,8,128] {
  %p0 = f32[4,8,128]{2,1,0:T(8,128)} parameter(0)
  %p1 = s32[]{:T(128)} parameter(1)
  ROOT %ds = f32[1,8,128]{2,1,0:T(8,128)} dynamic-slice(%p0, %p1), dynamic_slice_sizes={1,8,128}
}

%all-reduce-scatter.1 (p: f32[128,128]) -> f32[32,128] {
  %p = f32[128,128]{1,0:T(8,128)} parameter(0)
  %zero = s32[]{:T(128)} constant(0)
  %sum = f32[128,128]{1,0:T(8,128)} all-reduce(%p), channel_id=7, to_apply=%add
  ROOT %part = f32[32,128]{1,0:T(8,128)} dynamic-slice(%sum, %zero), dynamic_slice_sizes={32,128}
}

%body (carry: (s32[], f32[4,8,128])) -> (s32[], f32[4,8,128]) {
  %carry = (s32[]{:T(128)}, f32[4,8,128]{2,1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%carry), index=0
  %all = f32[4,8,128]{2,1,0:T(8,128)} get-tuple-element(%carry), index=1
  %own = f32[1,8,128]{2,1,0:T(8,128)S(1)} fusion(%all, %i), kind=kLoop, calls=%fused_slice
  %start = (f32[1,8,128]{2,1,0:T(8,128)S(1)}, f32[1,32,128]{2,1,0:T(8,128)S(1)}) all-gather-start(%own), dimensions={1}
  %whole = f32[1,32,128]{2,1,0:T(8,128)S(1)} all-gather-done(%start)
  ROOT %next = (s32[]{:T(128)}, f32[4,8,128]{2,1,0:T(8,128)}) tuple(%i, %all)
}

%condition (state: (s32[], f32[4,8,128])) -> pred[] {
  %bound = s32[]{:T(128)} constant(4)
  %state = (s32[]{:T(128)}, f32[4,8,128]{2,1,0:T(8,128)}) parameter(0)
  %at = s32[]{:T(128)} get-tuple-element(%state), index=0
  ROOT %lt = pred[]{:T(512)} compare(%at, %bound), direction=LT
}

%gather_start (p2: f32[8,128]) -> f32[32,128] {
  %p2 = f32[8,128]{1,0:T(8,128)} parameter(0)
  ROOT %begun = f32[32,128]{1,0:T(8,128)} all-gather(%p2), channel_id=9, dimensions={0}
}

%gather_done (p3: f32[8,128]) -> f32[32,128] {
  %p3 = f32[8,128]{1,0:T(8,128)} parameter(0)
  ROOT %ended = f32[32,128]{1,0:T(8,128)} all-gather(%p3), channel_id=9, dimensions={0}
}

ENTRY %main (w: f32[4,8,128], g: f32[128,128]) -> f32[32,128] {
  %w = f32[4,8,128]{2,1,0:T(8,128)} parameter(0)
  %g = f32[128,128]{1,0:T(8,128)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  %begin = (s32[]{:T(128)}, f32[4,8,128]{2,1,0:T(8,128)}) tuple(%zero, %w)
  %loop = (s32[]{:T(128)}, f32[4,8,128]{2,1,0:T(8,128)}) while(%begin), condition=%condition, body=%body
  %own_bias = f32[8,128]{1,0:T(8,128)S(1)} custom-call(), custom_call_target="AllocateBuffer"
  %bias = f32[32,128]{1,0:T(8,128)S(1)} fusion(%own_bias), kind=kCustom, calls=%gather_start
  %bias_too = f32[32,128]{1,0:T(8,128)S(1)} fusion(%own_bias), kind=kCustom, calls=%gather_done
  ROOT %scattered = f32[32,128]{1,0:T(8,128)} fusion(%g), kind=kCustom, calls=%all-reduce-scatter.1
}
"""  # noqa: E501


def test_collectives_of_a_tpu_program():
    traffic = hlo.traffic(_PROGRAM)
    assert traffic.collectives == {
        "all-gather": hlo.Collective(4 + 1, (4.0 + 1.0) * 32 * 128 * 4),
        "reduce-scatter": hlo.Collective(1, 128.0 * 128 * 4),
    }
    # Each round reads its slice and the loop's number; then the gradient is read, a part written.
    assert traffic.memory_bytes == 4 * (8 * 128 * 4 + 4) + 128 * 128 * 4 + 32 * 128 * 4


# What XLA writes for a TPU where an array moves to the chip in parts beside other work, and where
# memory is set aside.
_PARTS = """
HloModule jit_step, is_scheduled=true

ENTRY %main (x: f32[8,128]) -> f32[4,128] {
  %x = f32[8,128]{1,0:T(8,128)} parameter(0)
  %start = ((f32[8,128]{1,0:T(8,128)}), f32[4,128]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%x), slice={[0:4], [0:128]}
  %start_too = ((f32[8,128]{1,0:T(8,128)}), f32[4,128]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%x), slice={[4:8], [0:128]}
  %later = f32[64,128]{1,0:T(8,128)} custom-call(), custom_call_target="AllocateBuffer"
  %done = f32[4,128]{1,0:T(8,128)S(1)} slice-done(%start)
  %done_too = f32[4,128]{1,0:T(8,128)S(1)} slice-done(%start_too)
  ROOT %sum = f32[4,128]{1,0:T(8,128)} add(%done, %done_too)
}
"""  # noqa: E501


def test_an_array_that_moves_in_parts_is_read_once_and_one_without_values_is_not():
    assert hlo.traffic(_PARTS).memory_bytes == 8 * 128 * 4 + 4 * 128 * 4
