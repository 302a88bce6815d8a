"""The file of each name `hf://...` or, with `error: `, why there is none; a line for each."""

import sys

from nvg_jax import hub
from nvg_jax.errors import UserError

for name in sys.argv[1:]:
    try:
        print(hub.local_file(name))
    except UserError as error:
        print(f"error: {error}")
