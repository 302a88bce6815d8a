"""Multi-granularity residual quantization (paper, Sec. 3.2). Everything here is float32."""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from nvg_jax import granularity
from nvg_jax.granularity import GranularitySequence


class Quantized(NamedTuple):
    """What quantizing a batch of latents gives.

    tokens: the contents of the painted stages as a heap.
    latent: the quantized latent, with the straight-through gradient to the encoder.
    canvases: what has been painted before each of these stages, and after the last:
        `canvases[:, 0]` is zero and `canvases[:, -1]` the quantized latent.
    loss: commitment and codebook loss, mean over these stages.
    """

    tokens: Int[Array, "B heap"]
    latent: Float[Array, "B L C"]
    canvases: Float[Array, "B canvases L C"]
    loss: Float[Array, ""]


class Quantizer(nn.Module):
    """A codebook shared by all stages and one refiner a stage, `phi_k(h) = h + conv3x3_k(h) / 2`.

    The collection `stats` holds `canvas_scales [K + 2]`, 1 / std of the canvas before each stage
    and after the last, with which the generator sees canvases of unit variance: ones until they are
    measured on data. The zero canvas before the first painted stage has scale 1.

    ladder: the stages that are painted; empty is all. What is kept of the others is never used.
    """

    vocab_size: int
    channels: int
    grid: tuple[int, int]
    ladder: tuple[int, ...] = ()

    def setup(self) -> None:
        stages = self.last_stage + 1
        self.codebook = self.param(
            "codebook",
            nn.initializers.variance_scaling(1.0, "fan_out", "uniform"),
            (self.vocab_size, self.channels),
        )
        kernel_init = nn.initializers.variance_scaling(1.0, "fan_in", "uniform", batch_axis=0)
        self.refiner_kernel = self.param(
            "refiner_kernel", kernel_init, (stages, 3, 3, self.channels, self.channels)
        )
        self.refiner_bias = self.param(
            "refiner_bias", nn.initializers.zeros, (stages, self.channels)
        )
        self.canvas_scales = self.variable("stats", "canvas_scales", jnp.ones, (stages + 1,))

    @property
    def last_stage(self) -> int:
        return granularity.last_stage(self.grid[0] * self.grid[1])

    @property
    def stages(self) -> tuple[int, ...]:
        """Those that are painted."""
        return granularity.painted_stages(self.ladder, self.last_stage)

    def refine(
        self, painted: Float[Array, "B L C"], stage: int | Int[Array, ""]
    ) -> Float[Array, "B L C"]:
        """`phi_stage` on the grid of positions; `stage` may be traced."""
        image = painted.reshape(-1, *self.grid, self.channels)
        convolved = jax.lax.conv_general_dilated(
            image,
            self.refiner_kernel[stage],
            window_strides=(1, 1),
            padding="SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=jax.lax.Precision.HIGHEST,
        )
        refined = image + 0.5 * (convolved + self.refiner_bias[stage])
        return refined.reshape(painted.shape)

    def by_stage(self, tokens: Int[Array, "B heap"]) -> list[Int[Array, "B _"]]:
        """The tokens of each painted stage."""
        return granularity.by_stage(tokens, self.stages)

    def mean(
        self, values: Float[Array, "B L C"], structure: Int[Array, "B L"], stage: int
    ) -> Float[Array, "B N C"]:
        """What each token of a stage has to stand for: the mean over its cluster."""
        labels = granularity.labels_at(structure, stage)
        return granularity.cluster_mean(values, labels, 2**stage)

    def paint(
        self, vectors: Float[Array, "B N C"], structure: Int[Array, "B L"], stage: int
    ) -> Float[Array, "B L C"]:
        """The tokens' vectors at the positions they stand for."""
        return granularity.paint(vectors, granularity.labels_at(structure, stage))

    def brush(
        self,
        tokens: Int[Array, "B N"],
        labels: Int[Array, "B L"],
        stage: int | Int[Array, ""],
    ) -> Float[Array, "B L C"]:
        """What a stage with these tokens and labels adds to the canvas; `stage` may be traced."""
        return self.refine(granularity.paint(self.codebook[tokens], labels), stage)

    def nearest(self, vectors: Float[Array, "B N C"]) -> Int[Array, "B N"]:
        """The code nearest to each vector."""
        return jnp.argmin(self._squared_distance(vectors), axis=-1).astype(jnp.int32)

    def canvases(self, sequence: GranularitySequence) -> Float[Array, "B canvases L C"]:
        """The canvases before each stage and after the last one, from a finished sequence."""
        batch = sequence.tokens.shape[0]
        canvas = jnp.zeros((batch, self.grid[0] * self.grid[1], self.channels))
        canvases = [canvas]
        for stage, tokens in zip(self.stages, self.by_stage(sequence.tokens), strict=True):
            painted = self.paint(self.codebook[tokens], sequence.structure, stage)
            canvas = canvas + self.refine(painted, stage)
            canvases.append(canvas)
        return jnp.stack(canvases, axis=1)

    def __call__(
        self,
        latent: Float[Array, "B L C"],
        structure: Int[Array, "B L"] | None,
        codebook_warmup: Bool[Array, ""] | None = None,
    ) -> Quantized:
        """Quantizes the residual stage by stage.

        structure: None if `mean` and `paint` need none.
        codebook_warmup: whether the vectors of a stage are `onehot + softmax - sg(softmax)` of the
        codes' negative distances times the codebook, so that every code gets a gradient (index
        back-propagation). None: no, and no program for it.
        """
        canvas = jnp.zeros_like(latent)
        tokens, canvases, loss = [], [canvas], 0.0
        for stage in self.stages:
            mean = self.mean(latent - canvas, structure, stage)
            distance = self._squared_distance(mean)
            code = jnp.argmin(distance, axis=-1)
            vectors = self._vectors(code, distance, codebook_warmup)
            painted = self.refine(self.paint(vectors, structure, stage), stage)
            canvas = canvas + painted
            commitment = jnp.mean((jax.lax.stop_gradient(canvas) - latent) ** 2)
            codebook = jnp.mean((canvas - jax.lax.stop_gradient(latent)) ** 2)
            loss += 0.25 * commitment + codebook
            tokens.append(code.astype(jnp.int32))
            canvases.append(canvas)
        return Quantized(
            tokens=jnp.concatenate(tokens, axis=1),
            latent=latent + jax.lax.stop_gradient(canvas - latent),
            canvases=jnp.stack(canvases, axis=1),
            loss=loss / len(self.stages),
        )

    def _vectors(
        self,
        code: Int[Array, "B N"],
        distance: Float[Array, "B N V"],
        codebook_warmup: Bool[Array, ""] | None,
    ) -> Float[Array, "B N C"]:
        """The nearest code's vector, during the warm-up with a gradient to all codes."""
        if codebook_warmup is None:
            return self.codebook[code]

        def soft(codebook: Array, distance: Array) -> Array:
            share = nn.softmax(-distance, axis=-1)
            chosen = jax.nn.one_hot(code, self.vocab_size)
            return _matmul(chosen + share - jax.lax.stop_gradient(share), codebook)

        def hard(codebook: Array, _: Array) -> Array:
            return codebook[code]

        return jax.lax.cond(codebook_warmup, soft, hard, self.codebook, distance)

    def _squared_distance(self, vectors: Float[Array, "B N C"]) -> Float[Array, "B N V"]:
        return (
            jnp.sum(vectors**2, -1, keepdims=True)
            - 2 * _matmul(vectors, self.codebook.T)
            + jnp.sum(self.codebook**2, -1)
        )


def _matmul(a: Float[Array, "... F"], b: Float[Array, "F G"]) -> Float[Array, "... G"]:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
