"""A small NVG on scikit-learn's handwritten digits: minutes on a laptop's CPU, start to finish."""

from nvg_jax.configs import small


def get_config():
    config = small.get_config(epochs=32)
    small.without_frozen_networks(config)

    data = config.data
    data.dataset = "digits"
    data.num_classes = 10
    data.image_size = 16
    data.resize_ratio = 1.0  # The digits fill their frames: a random crop would cut them.

    tokenizer = config.tokenizer
    tokenizer.model.multipliers = (1, 2, 2)  # 4 x 4 positions: stages 0..4.
    tokenizer.model.vocab_size = 128
    training = tokenizer.training
    training.batch_size = 64
    training.epochs = 12.0
    training.log_every = 50
    training.image_every = 200
    training.checkpoint_every = 100

    model = config.generator.model
    model.structure_width = 32
    training = config.generator.training
    training.batch_size = 64
    training.learning_rate = 3e-3
    training.warmup_steps = 30
    training.ema_decay = 0.98
    training.log_every = 100

    sampling = config.sampling
    sampling.num_samples = 500
    sampling.batch_size = 100
    sampling.content_guidance = (1.0, 5.0)
    sampling.structure_guidance = (1.0, 3.0)
    sampling.temperature = 0.8
    sampling.flow_steps = 4
    evaluation = config.evaluation
    evaluation.num_samples = 500
    return config
