"""A small NVG on crops of two photographs: the tokenizer's complete loss, minutes on a CPU."""

from nvg_jax.configs import small


def get_config():
    config = small.get_config(epochs=2)

    data = config.data
    data.dataset = "photos"
    data.num_classes = 2
    data.image_size = 64
    config.frozen.random = True  # No download. Fetch the networks and set this to False for better.

    tokenizer = config.tokenizer
    tokenizer.model.multipliers = (1, 1, 2, 2)  # 8 x 8 positions: stages 0..6.
    tokenizer.model.vocab_size = 256
    training = tokenizer.training
    training.batch_size = 16
    training.epochs = 3.0
    training.discriminator.input_size = 48
    training.log_every = 25
    training.image_every = 125
    training.checkpoint_every = 125

    model = config.generator.model
    model.content_width = 128
    training = config.generator.training
    training.learning_rate = 1e-3
    training.warmup_steps = 30
    training.ema_decay = 0.98
    training.repa.weight = 0.0  # Random features teach the generator nothing.
    training.log_every = 25
    training.checkpoint_every = 62

    sampling = config.sampling
    sampling.num_samples = 32
    sampling.batch_size = 32
    config.evaluation.metrics = ("psnr", "ssim", "codebook_usage")
    return config
