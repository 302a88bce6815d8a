"""What training carries from step to step, and the update that both tasks share."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

Tree = Any


@flax.struct.dataclass
class TrainState:
    """What a training is at a step.

    step: optimizer steps done. params: all that this training's optimizer moves. ema: averaged
    variables, all that inference needs. adversary: the discriminator's side, if there is one.
    """

    step: Tree
    params: Tree
    opt_state: Tree
    ema: Tree
    adversary: Tree = None

    @classmethod
    def create(
        cls,
        variables: Tree,
        optimizer: optax.GradientTransformation,
        helpers: Tree | None = None,
        adversary: Tree = None,
    ) -> TrainState:
        """The state before the first step.

        variables: the model's `params` and what goes with them. helpers: parameters by name that
        are trained beside the model's and serve training alone.
        """
        params = {**variables["params"], **(helpers or {})}
        return cls(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=optimizer.init(params),
            # A copy, as donated buffers must not be shared.
            ema=jax.tree.map(jnp.copy, variables),
            adversary=adversary,
        )

    def update(
        self, grads: Tree, optimizer: optax.GradientTransformation, ema_decay: float
    ) -> TrainState:
        """The state after one step. The average's decay rises to `ema_decay` over time."""
        updates, opt_state = optimizer.update(grads, self.opt_state, self.params)
        params = optax.apply_updates(self.params, updates)
        decay = jnp.minimum(ema_decay, (1.0 + self.step) / (10.0 + self.step))
        model_params = {name: params[name] for name in self.ema["params"]}
        averaged = optax.incremental_update(model_params, self.ema["params"], 1.0 - decay)
        return self.replace(
            step=self.step + 1,
            params=params,
            opt_state=opt_state,
            ema={**self.ema, "params": averaged},
        )
