"""A small NVG on rendered scenes whose masks are known: does structure mean something?"""

from nvg_jax.configs import small


def get_config():
    config = small.get_config(epochs=46)
    small.without_frozen_networks(config)

    data = config.data
    data.dataset = "shapes"
    data.num_classes = 16
    data.image_size = 64
    data.resize_ratio = 1.0  # A random crop would cut the shapes.

    tokenizer = config.tokenizer
    tokenizer.model.multipliers = (1, 1, 2, 2)  # 8 x 8 positions: stages 0..6.
    tokenizer.model.norm_groups = 8  # Groups of single channels leave a blob at a fixed place.
    tokenizer.model.vocab_size = 512
    training = tokenizer.training
    training.batch_size = 16
    training.epochs = 8.0
    training.codebook_warmup_epochs = 0.5
    training.warmup_steps = 100
    training.ema_decay = 0.998
    training.log_every = 50
    training.image_every = 500
    training.checkpoint_every = 250

    model = config.generator.model
    model.depth = 4
    model.content_width = model.structure_width = 128
    model.structure_heads = 2
    training = config.generator.training
    training.batch_size = 32
    training.stage_stride = 4
    training.learning_rate = 1e-3
    training.warmup_steps = 200
    training.ema_decay = 0.998
    training.log_every = 50

    sampling = config.sampling
    sampling.num_samples = 128
    sampling.batch_size = 64
    sampling.content_guidance = (3.0, 6.0)
    sampling.structure_guidance = (4.0, 6.0)
    sampling.temperature = 0.7
    sampling.top_p = (1.0, 0.9)
    sampling.flow_steps = 4
    sampling.structure_stages = (0, 2)
    evaluation = config.evaluation
    evaluation.classifier.epochs = 12.0
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
        "structure_miou",
        "guided_iou",
        "variation",
    )
    evaluation.num_samples = 320  # 20 of each class.
    evaluation.variation.num_references = 16
    evaluation.variation.num_samples = 3
    evaluation.guided.num_samples = 160
    evaluation.edited.metrics = ("fid", "classifier_agreement")
    evaluation.structure_gap.metrics = ("fid", "precision_recall", "classifier_agreement")
    return config
