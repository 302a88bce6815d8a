"""A small NVG on scikit-learn's handwritten digits: minutes on a laptop's CPU, start to finish."""

from configs import base


def get_config():
    config = base.get_config(depth=3, epochs=32, decay_start=0.5, decay_to=0.05)

    data = config.data
    data.dataset = "digits"
    data.eval_split = "test"
    data.num_classes = 10
    data.image_size = 16
    data.resize_ratio = 1.0  # The digits fill their frames: a random crop would cut them.
    data.num_workers = 0

    tokenizer = config.tokenizer
    tokenizer.model.width = 32
    tokenizer.model.multipliers = (1, 2, 2)  # 4 x 4 positions: stages 0..4.
    tokenizer.model.num_blocks = 1
    tokenizer.model.latent_channels = 16
    tokenizer.model.vocab_size = 128
    tokenizer.scale_batches = 16
    training = tokenizer.training
    training.batch_size = 64
    training.epochs = 12.0
    training.learning_rate = 1e-3
    training.warmup_steps = 50
    training.warmup_from = 0.01
    training.ema_decay = 0.99
    training.lpips_weight = 0.0  # The frozen networks know nothing of 16 x 16 digits.
    training.adversarial_weight = 0.0
    training.log_every = 50
    training.image_every = 200
    training.checkpoint_every = 100

    model = config.generator.model
    model.content_width = 64
    model.content_heads = 2
    model.structure_width = 32
    model.structure_heads = 1
    model.drop_path = 0.0
    model.remat = "none"  # There is memory enough.
    model.dtype = "float32"
    training = config.generator.training
    training.batch_size = 64
    training.learning_rate = 3e-3
    training.warmup_steps = 30
    training.ema_decay = 0.98
    training.repa.weight = 0.0
    training.log_every = 100
    training.image_every = 500
    training.checkpoint_every = 250

    sampling = config.sampling
    sampling.num_samples = 500
    sampling.batch_size = 100
    sampling.content_guidance = (1.0, 5.0)
    sampling.structure_guidance = (1.0, 3.0)
    sampling.temperature = 0.8
    evaluation = config.evaluation
    evaluation.features = "classifier"  # Inception and LPIPS know nothing of digits.
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
    evaluation.num_samples = 500
    evaluation.variation.distance = "features"
    evaluation.structure_gap.metrics = (
        "fid",
        "precision_recall",
        "classifier_agreement",
        "class_agreement",
        "diversity",
    )
    return config
