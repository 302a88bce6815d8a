"""The job `control`: what is left to chance when the first stages are those of a reference."""

from __future__ import annotations

import logging

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from nvg_jax import files, pixels, sharding, visualize
from nvg_jax.errors import UserError
from nvg_jax.generator import sampler
from nvg_jax.jobs.generation import collect, generate, requested_classes, sampling_settings
from nvg_jax.jobs.given import named_image, reference_sequence
from nvg_jax.jobs.job import job
from nvg_jax.jobs.model import load_model
from nvg_jax.progress import track
from nvg_jax.tokenizer import inference

log = logging.getLogger(__name__)


@job
def control(config: ConfigDict, workdir: str) -> epath.Path | None:
    """Writes `stages.png` in a new folder `control/`, which process 0 returns: a picture as the
    paper's Figure 8.

    Each column keeps what the reference has before a painted stage, and the last all of it: in the
    upper half of the samples only the structure of these first stages, in the lower half structure
    and content. The rows of each half are the requested classes, each with noise of its own. Above
    them the reference after these stages.

    Raises:
      UserError: no reference, or one that `given.named_image` refuses; a map.
    """
    if config.control.structure:
        raise UserError(
            "the job control keeps stages of a reference image: config.control.structure is for "
            "--job=sample"
        )
    if not config.control.reference:
        raise UserError(
            "the job control needs a reference image: set --config.control.reference to a file, "
            f"or to an example as {config.data.eval_split}:0"
        )
    class_ids = requested_classes(config, config.control.num_samples)
    image = named_image(config.data, config.control.reference)
    model = load_model(config, workdir)
    reference = reference_sequence(config, model.tokenizer, model.tokenizer_variables)
    decoded = inference.stage_images_of(model.tokenizer, model.tokenizer_variables, reference)
    stages = sharding.on_host(decoded)[0]
    settings, batch_size = sampling_settings(config), config.sampling.batch_size
    counts = (0, *(stage + 1 for stage in model.tokenizer.stages))
    halves = {"structure": [], "structure\nand content": []}
    for keep_content, columns in enumerate(halves.values()):
        for count in track(counts, "stages kept", unit="stage"):
            given = sampler.Given(reference, count, count * keep_content)
            batches = generate(
                model, settings, class_ids, batch_size, config.seed, given, quiet=True
            )
            columns.append(collect(batches, len(class_ids)))
    rows = [[pixels.to_uint8(image), *stages]]
    names = ["original and\nits stages"]
    for name, columns in halves.items():
        rows += [list(row) for row in np.stack(columns, axis=1)]
        names += [f"{name}\nclass {class_id}" for class_id in class_ids]
    captions = ["nothing\nkept", *(f"stages < {count}\nkept" for count in counts[1:])]
    if jax.process_index() == 0:
        with files.new_folder(f"{workdir}/control") as folder:
            visualize.save_png(folder / "stages.png", visualize.table(rows, captions, names))
        log.info("wrote what varies when stages are kept: %s/stages.png", folder)
        return folder
    return None
