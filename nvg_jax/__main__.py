"""The command `nvg-jax`, and `python -m nvg_jax`: short for `python -m nvg_jax.main`."""

import runpy

from nvg_jax import stopping


def main() -> None:
    stopping.watch()
    runpy.run_module("nvg_jax.main", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
