"""`nvg_jax.interop.fetch` for a small stand-in in place of the released models.

Takes JSON: `values` of the config that are others, and `calls`, each a token and arguments. Prints
what each call prints and returns, as JSON.
"""

import contextlib
import importlib
import io
import json
import os
import sys

from nvg_jax.interop import fetch
from nvg_jax.pretrained import GENERATORS

given = json.load(sys.stdin)
for name in GENERATORS:
    module = importlib.import_module(f"nvg_jax.configs.{name}")
    config = module.get_config()
    config.update_from_flattened_dict(given["values"])
    module.get_config = lambda config=config: config

done = []
for token, arguments in given["calls"]:
    os.environ["HF_TOKEN"] = token
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = fetch.main(arguments)
    done.append((code, out.getvalue().splitlines(), err.getvalue().splitlines()))
print(json.dumps(done))
