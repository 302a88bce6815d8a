"""Training VAR's generator on tokenized images."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from nvg_jax import keys
from nvg_jax.baselines.var import sampler
from nvg_jax.baselines.var.tokenizer import by_scale
from nvg_jax.generator.training import GeneratorTask
from nvg_jax.generator.transformer import dropping
from nvg_jax.tokenizer.model import canvas_scales
from nvg_jax.training.loop import Batch, Metrics


class VarTask(GeneratorTask):
    """The loop's task: all scales of every image in one pass, each from the true canvas before."""

    sample = staticmethod(sampler.sample)

    def loss(
        self, frozen: Any, params: Any, batch: Batch, key: Key[Array, ""]
    ) -> tuple[Float[Array, ""], Metrics]:
        """The cross-entropy of the tokens, mean over all of them, and by scale."""
        sequence, canvases = self._tokenized(frozen["tokenizer"], batch)
        logits = self.generator.network.apply(
            {"params": params["transformer"]},
            self.generator.inputs(canvases, canvas_scales(frozen["tokenizer"])),
            self._some_dropped(batch["label"], batch["key"]),
            **dropping(keys.named(key, "transformer")),
        )
        errors = optax.softmax_cross_entropy_with_integer_labels(logits, sequence.tokens)
        loss = jnp.mean(errors)
        scales = self.generator.sizes.stack.scales
        by_stage = jnp.stack([jnp.mean(x) for x in by_scale(errors, scales)])
        return loss, {
            "loss": loss,
            "loss/content": loss,
            "content_by_stage": by_stage,
            "token_counts": self._token_counts(sequence),
        }
