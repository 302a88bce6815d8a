"""The job `tokenize`, alone or as one of two processes: CONFIG_JSON WORKDIR [ADDRESS INDEX]."""

import json
import sys

import jax
from ml_collections import ConfigDict

from nvg_jax import jobs

config, workdir, *distributed = sys.argv[1:]
if distributed:
    address, index = distributed
    jax.config.update("jax_platforms", "cpu")
    jax.distributed.initialize(address, num_processes=2, process_id=int(index))
jobs.tokenize(ConfigDict(json.loads(config)), workdir)
