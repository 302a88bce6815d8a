"""The content generator: from the canvas so far to the stage's tokens (paper, Sec. 3.3).

The network, its losses and the drawing of tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from einops import rearrange
from jaxtyping import Array, Float, Int, Key

from nvg_jax import granularity, keys
from nvg_jax.generator.numbers import SMOOTH, embed_number, number_layers
from nvg_jax.generator.rope import rope_ids, with_class_token
from nvg_jax.generator.sizes import Sizes
from nvg_jax.generator.transformer import Head, Stack, dense, dropping, embed, embedding_init
from nvg_jax.granularity import GranularitySequence

Params = Any
MAX_GUIDANCE = 8.0  # Of a network that takes it.
Number = Float[Array, ""] | None
Align = Callable[[Float[Array, "B stages L D"]], Float[Array, "stages"]]


class Content(nn.Module):
    """Predicts the final canvas from the canvas of a stage, and from that the stage's tokens.

    Its parameters are given to `loss` and `token_logits`; what is not marked `nowrap` is the
    network itself. tap: as in `transformer.Stack`.
    """

    sizes: Sizes
    tap: int = 0

    def setup(self) -> None:
        sizes, stack = self.sizes, self.sizes.content
        self.start_canvas = self.param(
            "start_canvas", embedding_init, (sizes.num_positions, sizes.latent_channels)
        )
        self.canvas_embed = dense(stack.width, stack.dtype)
        self.class_embed = embed(sizes.num_classes + 1, stack.width)
        self.stage_embed = embed(sizes.last_stage + 1, stack.width)
        self.stack = Stack(stack, self.tap)
        if sizes.guided_content:
            self.guidance_embed_in, self.guidance_embed_out = number_layers(
                stack.width, last_init=nn.initializers.zeros
            )
        self.final_head = Head(sizes.latent_channels, stack.dtype)
        self.token_head = dense(sizes.vocab_size, jnp.float32)

    def __call__(
        self,
        canvas: Float[Array, "B L C"],
        structure: Int[Array, "B L"],
        stage: Int[Array, "B"],
        class_id: Int[Array, "B"],
        canvas_scales: Float[Array, "scales"],
        noise: Float[Array, "B L C"] | None = None,
        deterministic: bool = True,
        guidance: Float[Array, "B"] | None = None,
    ) -> Float[Array, "B L C"]:
        """The predicted final canvas.

        canvas: what stages before `stage` have painted. structure: only the top `stage` bits count.
        canvas_scales: 1 / std of the tokenizer's canvases. noise: as `noise` makes it. Random keys:
        `drop_path`, unless deterministic. guidance: of a network that takes it, from 1 on. Its
        embedding starts at zero: a trained network that gets it does as before.
        """
        sizes = self.sizes
        scaled = canvas * canvas_scales[stage][:, None, None]
        if sizes.noised_canvas:
            share = (1.0 - stage / (sizes.last_stage + 1))[:, None, None]
            scaled = share * noise + (1.0 - share) * scaled
        else:
            is_first = (stage == sizes.stages[0])[:, None, None]
            scaled = jnp.where(is_first, self.start_canvas, scaled)
        class_token = self.class_embed(class_id)
        vector = class_token + self.stage_embed(stage)
        if sizes.guided_content:
            layers = (self.guidance_embed_in, self.guidance_embed_out)
            vector += embed_number(1.0 - 1.0 / guidance, *layers, fastest=SMOOTH)
        class_token = class_token[:, None].astype(sizes.content.dtype)
        x = jnp.concatenate([class_token, self.canvas_embed(scaled)], axis=1)
        known = stage if sizes.structure_rope else jnp.zeros_like(stage)
        ids = rope_ids(granularity.structure_embedding(structure, known), sizes.grid)
        x = self.stack(x, vector, with_class_token(ids), deterministic)
        return self.final_head(x[:, 1:], vector) / canvas_scales[-1]

    def logits(self, missing: Float[Array, "B N C"]) -> Float[Array, "B N V"]:
        """Token logits of clusters, from the mean of what is still missing on the canvas there."""
        return self.token_head(missing)

    def init_all(self) -> None:
        """Runs every part once on zeros, which is all that initialisation needs."""
        sizes = self.sizes
        canvas = jnp.zeros((1, sizes.num_positions, sizes.latent_channels))
        zero = jnp.zeros((1,), jnp.int32)
        structure = jnp.zeros((1, sizes.num_positions), jnp.int32)
        scales = jnp.ones((sizes.last_stage + 2,))
        one = jnp.ones((1,))
        self.logits(self(canvas, structure, zero, zero, scales, canvas, guidance=one))

    @nn.nowrap
    def init_params(self, key: Key[Array, ""]) -> Params:
        return self.init(key, method=Content.init_all)["params"]

    @nn.nowrap
    def noise(self, image_keys: Key[Array, "B"]) -> Float[Array, "B L C"] | None:
        """Each image's canvas noise, which all its stages share; None for a model without."""
        if not self.sizes.noised_canvas:
            return None
        shape = (self.sizes.num_positions, self.sizes.latent_channels)
        return keys.normal(image_keys, "canvas noise", shape)

    @nn.nowrap
    def guidance(self, image_keys: Key[Array, "B"]) -> Float[Array, "B stages"] | None:
        """Training's guidance of each image and stage; None for a network that takes none.

        From 1 to MAX_GUIDANCE, with uniform inverses.
        """
        if not self.sizes.guided_content:
            return None
        shape = (len(self.sizes.stages),)
        inverse = keys.uniform(image_keys, "content guidance", shape)
        return 1.0 / (inverse + (1.0 - inverse) / MAX_GUIDANCE)

    @nn.nowrap
    def missing(
        self,
        final_canvas: Float[Array, "B L C"],
        canvas: Float[Array, "B L C"],
        labels: Int[Array, "B L"],
        num_clusters: int,
    ) -> Float[Array, "B N C"]:
        """What is missing on the canvas of a stage, mean over each of its clusters."""
        missing = final_canvas - canvas if self.sizes.predict_final_canvas else final_canvas
        return granularity.cluster_mean(missing, labels, num_clusters)

    @nn.nowrap
    def token_logits(self, params: Params, missing: Float[Array, "B N C"]) -> Float[Array, "B N V"]:
        """`logits` with the given parameters."""
        return self.apply({"params": params}, missing, method=Content.logits)

    @nn.nowrap
    def loss(
        self,
        params: Params,
        sequence: GranularitySequence,
        canvases: Float[Array, "B canvases L C"],
        class_id: Int[Array, "B"],
        canvas_scales: Float[Array, "scales"],
        noise: Float[Array, "B L C"] | None = None,
        drop_path_key: Key[Array, ""] | None = None,
        align: Align | None = None,
        stage_stride: int = 1,
        guidance: Float[Array, "B stages"] | None = None,
    ) -> dict[str, Float[Array, "stages"]]:
        """What guides the network, at all painted stages of every image at once (paper, Eq. 5-7).

        `final`: error of the predicted final canvas, unless the model is without one; `content`:
        cross-entropy of the tokens; `repa`: what `align` gives for the tokens that are tapped.

        canvases: before each stage and after the last. drop_path_key: when training.
        stage_stride: how many images share the stages, as in `granularity.shared_out`.
        guidance: as `guidance` draws it. What the network then predicts is the guided canvas; the
        losses are those of the one with the class, which lies between that and the canvas without
        (guidance-free training, https://arxiv.org/abs/2501.15420).
        """
        painted = self.sizes.stages
        stages = len(painted)

        def at_all(array: Array) -> Array:
            return granularity.shared_out([array] * stages, stage_stride)

        structure = at_all(sequence.structure)
        inputs = granularity.shared_out([canvases[:, k] for k in range(stages)], stage_stride)
        heaps = at_all(sequence.tokens)
        places = [granularity.stage_slice(stage, painted) for stage in painted]
        tokens = [heaps[:, k, place] for k, place in enumerate(places)]
        given = {
            "canvas": granularity.flat(inputs),
            "structure": granularity.flat(structure),
            "stage": jnp.tile(jnp.asarray(painted), structure.shape[0]),
            "class_id": granularity.flat(at_all(class_id)),
            "canvas_scales": canvas_scales,
            "noise": None if noise is None else granularity.flat(at_all(noise)),
        }
        if guidance is not None:
            guidance = granularity.shared_out(jnp.unstack(guidance, axis=1), stage_stride)
            no_class = jnp.full_like(given["class_id"], self.sizes.num_classes)
            guidance = jnp.where(given["class_id"] == no_class, 1.0, granularity.flat(guidance))
        final_canvas, sown = self.apply(
            {"params": params},
            **given,
            guidance=guidance,
            **dropping(drop_path_key),
            mutable=["intermediates"],
        )
        if guidance is not None:
            given |= {"class_id": no_class, "guidance": jnp.ones_like(guidance)}
            without = jax.lax.stop_gradient(self.apply({"params": params}, **given))
            final_canvas = without + (final_canvas - without) / guidance[:, None, None]
        final_canvas = rearrange(final_canvas, "(b s) l c -> b s l c", s=stages)
        by_stage = {}
        if self.sizes.predict_final_canvas:
            error = (final_canvas - at_all(canvases[:, -1])) ** 2
            by_stage["final"] = jnp.mean(error, axis=(0, 2, 3))
        missing = [
            self.missing(
                final_canvas[:, k],
                inputs[:, k],
                granularity.labels_at(structure[:, k], stage),
                2**stage,
            )
            for k, stage in enumerate(painted)
        ]
        logits = self.token_logits(params, jnp.concatenate(missing, axis=1))
        error = optax.softmax_cross_entropy_with_integer_labels(
            logits, jnp.concatenate(tokens, axis=1)
        )
        by_stage["content"] = jnp.stack([jnp.mean(error[:, place]) for place in places])
        if align is not None:
            (tapped,) = sown["intermediates"]["stack"]["tapped"]
            by_stage["repa"] = align(rearrange(tapped[:, 1:], "(b s) l d -> b s l d", s=stages))
        return by_stage


def draw(
    logits: Float[Array, "B N V"],
    image_keys: Key[Array, "B"],
    temperature: Number,
    top_k: int,
    top_p: Number,
) -> Int[Array, "B N"]:
    """Draws a token for each cluster; without a temperature the most likely one."""
    if temperature is None:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = truncate(logits / temperature, top_k, top_p)
    return jax.vmap(jax.random.categorical)(image_keys, logits).astype(jnp.int32)


def truncate(logits: Float[Array, "B N V"], top_k: int, top_p: Number) -> Float[Array, "B N V"]:
    """Sets to -inf what is neither among the `top_k` nor within the likeliest mass `top_p`.

    The token that crosses `top_p` is kept, and whatever is as likely as one that is kept. `top_k` 0
    and `top_p` None mean no bound.
    """
    if 0 < top_k < logits.shape[-1]:
        least = jax.lax.top_k(logits, top_k)[0][..., -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if top_p is not None:
        logits = jnp.where(logits < _least_within(logits, top_p), -jnp.inf, logits)
    return logits


def _least_within(logits: Float[Array, "B N V"], top_p: Number) -> Float[Array, "B N 1"]:
    """The least logit above which there is less than the mass `top_p`.

    Found by halving the range of float32, whose order is that of its bits, since sorting thousands
    of logits takes many times as long.
    """
    probability = jax.nn.softmax(logits, axis=-1)

    def halve(_: Any, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        too_low, enough = bounds
        middle = (too_low & enough) + ((too_low ^ enough) >> 1)  # Their mean, without overflow.
        above = jnp.where(logits > _from_order(middle), probability, 0.0)
        is_enough = jnp.sum(above, axis=-1, keepdims=True) < top_p
        return jnp.where(is_enough, too_low, middle), jnp.where(is_enough, middle, enough)

    highest = jnp.max(logits, axis=-1, keepdims=True)
    lowest = jnp.full_like(highest, jnp.finfo(jnp.float32).min)
    bounds = (_to_order(lowest) - 1, _to_order(highest))
    return _from_order(jax.lax.fori_loop(0, 32, halve, bounds)[1])


def _to_order(x: Float[Array, "..."]) -> Int[Array, "..."]:
    """Integers in the order of float32 numbers."""
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32)
    return jnp.where(bits < 0, bits ^ jnp.int32(0x7FFFFFFF), bits)


def _from_order(order: Int[Array, "..."]) -> Float[Array, "..."]:
    """The inverse of `_to_order`."""
    bits = jnp.where(order < 0, order ^ jnp.int32(0x7FFFFFFF), order)
    return jax.lax.bitcast_convert_type(bits, jnp.float32)
