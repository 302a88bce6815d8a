"""A small NVG on rendered scenes whose masks are known: does structure mean something?"""

from configs import base


def get_config():
    config = base.get_config(depth=3, epochs=6, decay_start=0.5, decay_to=0.05)

    data = config.data
    data.dataset = "shapes"
    data.eval_split = "test"
    data.num_classes = 16
    data.image_size = 64
    data.resize_ratio = 1.0  # A random crop would cut the shapes.
    data.num_workers = 0

    tokenizer = config.tokenizer
    tokenizer.model.width = 32
    tokenizer.model.multipliers = (1, 1, 2, 2)  # 8 x 8 positions: stages 0..6.
    tokenizer.model.num_blocks = 1
    tokenizer.model.latent_channels = 16
    tokenizer.model.vocab_size = 256
    tokenizer.scale_batches = 16
    training = tokenizer.training
    training.batch_size = 16
    training.epochs = 2.0
    training.codebook_warmup_epochs = 0.25
    training.learning_rate = 1e-3
    training.warmup_steps = 50
    training.warmup_from = 0.01
    training.ema_decay = 0.99
    training.lpips_weight = 0.0  # Nothing to download.
    training.adversarial_weight = 0.0
    training.log_every = 50
    training.image_every = 250
    training.checkpoint_every = 250

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
    training.learning_rate = 2e-3
    training.warmup_steps = 100
    training.ema_decay = 0.99
    training.repa.weight = 0.0
    training.log_every = 50
    training.image_every = 500
    training.checkpoint_every = 250

    sampling = config.sampling
    sampling.num_samples = 128
    sampling.batch_size = 64
    sampling.structure_guidance = (1.0, 4.0)
    sampling.temperature = 0.7
    evaluation = config.evaluation
    evaluation.features = "classifier"
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
    evaluation.variation.distance = "features"
    evaluation.variation.num_references = 16
    evaluation.variation.num_samples = 3
    evaluation.guided.num_samples = 160
    evaluation.structure_gap.metrics = ("fid", "precision_recall", "classifier_agreement")
    return config
