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
    """step: optimizer steps done. ema: averaged variables, all that inference needs."""

    step: Tree
    params: Tree
    opt_state: Tree
    ema: Tree

    @classmethod
    def create(cls, variables: Tree, optimizer: optax.GradientTransformation) -> TrainState:
        """The state before the first step; `variables` hold `params` and what goes with them."""
        params = variables["params"]
        return cls(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=optimizer.init(params),
            # A copy, as donated buffers must not be shared.
            ema=jax.tree.map(jnp.copy, variables),
        )

    def update(
        self, grads: Tree, optimizer: optax.GradientTransformation, ema_decay: float
    ) -> TrainState:
        """The state after one step. The average's decay rises to `ema_decay` over time."""
        updates, opt_state = optimizer.update(grads, self.opt_state, self.params)
        params = optax.apply_updates(self.params, updates)
        decay = jnp.minimum(ema_decay, (1.0 + self.step) / (10.0 + self.step))
        averaged = optax.incremental_update(params, self.ema["params"], 1.0 - decay)
        return self.replace(
            step=self.step + 1,
            params=params,
            opt_state=opt_state,
            ema={**self.ema, "params": averaged},
        )
