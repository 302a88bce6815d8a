"""A small NVG on crops of two photographs: the tokenizer's complete loss, minutes on a CPU."""

from configs import base


def get_config():
    config = base.get_config(depth=3, epochs=2, decay_start=0.5, decay_to=0.05)

    data = config.data
    data.dataset = "photos"
    data.eval_split = "test"
    data.num_classes = 2
    data.image_size = 64
    data.num_workers = 0
    config.frozen.random = True  # No download. Fetch the networks and set this to False for better.

    tokenizer = config.tokenizer
    tokenizer.model.width = 32
    tokenizer.model.multipliers = (1, 1, 2, 2)  # 8 x 8 positions: stages 0..6.
    tokenizer.model.num_blocks = 1
    tokenizer.model.latent_channels = 16
    tokenizer.model.vocab_size = 256
    tokenizer.scale_batches = 16
    training = tokenizer.training
    training.batch_size = 16
    training.epochs = 3.0
    training.learning_rate = 1e-3
    training.warmup_steps = 50
    training.warmup_from = 0.01
    training.ema_decay = 0.99
    training.discriminator.input_size = 48
    training.log_every = 25
    training.image_every = 125
    training.checkpoint_every = 125

    model = config.generator.model
    model.content_width = 128
    model.content_heads = 2
    model.structure_width = 64
    model.structure_heads = 1
    model.drop_path = 0.0
    model.remat = "none"  # There is memory enough.
    model.dtype = "float32"
    training = config.generator.training
    training.batch_size = 32
    training.learning_rate = 1e-3
    training.warmup_steps = 30
    training.ema_decay = 0.98
    training.repa.weight = 0.0  # Random features teach the generator nothing.
    training.log_every = 25
    training.image_every = 500
    training.checkpoint_every = 62

    sampling = config.sampling
    sampling.num_samples = 32
    sampling.batch_size = 32
    config.evaluation.metrics = ("psnr", "ssim", "codebook_usage")
    return config
