"""What the small configs share: models and trainings for the CPU, on sets that come with them."""

import ml_collections

from nvg_jax.configs import base


def get_config(epochs: int | float) -> ml_collections.ConfigDict:
    """Sizes, numbers of steps and the data are still to be set. epochs: of the generator."""
    config = base.get_config(depth=3, epochs=epochs, decay_start=0.5, decay_to=0.05)
    config.data.eval_split = "test"
    config.data.num_workers = 0

    tokenizer = config.tokenizer
    tokenizer.model.width = 32
    tokenizer.model.num_blocks = 1
    tokenizer.model.latent_channels = 16
    tokenizer.scale_batches = 16
    training = tokenizer.training
    training.learning_rate = 1e-3
    training.warmup_steps = 50
    training.warmup_from = 0.01
    training.ema_decay = 0.99

    model = config.generator.model
    model.content_width = 64
    model.content_heads = 2
    model.structure_width = 64
    model.structure_heads = 1
    model.drop_path = 0.0
    model.remat = "none"  # There is memory enough.
    model.dtype = "float32"
    training = config.generator.training
    training.batch_size = 32
    training.repa.weight = 0.0
    training.image_every = 500
    training.checkpoint_every = 250
    return config


def without_frozen_networks(config: ml_collections.ConfigDict) -> None:
    """Trains and measures without networks that know nothing of such images, nor a download."""
    config.tokenizer.training.lpips_weight = 0.0
    config.tokenizer.training.adversarial_weight = 0.0
    evaluation = config.evaluation
    evaluation.features = "classifier"
    evaluation.metrics = (
        "psnr",
        "ssim",
        "rfid",
        "codebook_usage",
        "fid",
        "sfid",
        "inception_score",
        "precision_recall",
        "classifier_agreement",
        "class_agreement",
        "diversity",
        "variation",
    )
    evaluation.variation.distance = "features"
    evaluation.structure_gap.metrics = (
        "fid",
        "precision_recall",
        "classifier_agreement",
        "class_agreement",
        "diversity",
    )


# What other methods change, by their names.
BASELINES = {
    "var": {
        "generator.training.stage_stride": 1,  # A pass has all of an image anyway.
        "sampling.content_guidance": (1.0, 2.0),  # It needs less than NVG.
    }
}
BASELINES["flow"] = BASELINES["var"] | {
    "sampling.flow_steps": 25,
    "sampling.content_guidance": (2.0, 2.0),  # From noise to the latent.
}


def as_baseline(config: ml_collections.ConfigDict, method: str) -> None:
    """Exchanges the method, and takes away what only the paper's has."""
    config.method = method
    config.update_from_flattened_dict(BASELINES.get(method, {}))
    lacking = {"variation", "codebook_usage"} if method == "flow" else {"variation"}
    metrics = config.evaluation.metrics
    config.evaluation.metrics = tuple(name for name in metrics if name not in lacking)
