"""A small NVG on Fashion-MNIST's photographs of clothes."""

from nvg_jax.configs import small


def get_config():
    config = small.get_config(epochs=2.6)
    small.without_frozen_networks(config)

    data = config.data
    data.dataset = "fashion_mnist"
    data.num_classes = 10
    data.image_size = 32
    data.resize_ratio = 1.0  # The clothes fill their frames: a random crop would cut them.

    tokenizer = config.tokenizer
    tokenizer.model.width = 16
    tokenizer.model.multipliers = (1, 2, 4)  # 8 x 8 positions: stages 0..6.
    tokenizer.model.norm_groups = 8
    tokenizer.model.vocab_size = 512
    tokenizer.scale_batches = 64
    training = tokenizer.training
    training.batch_size = 64
    training.epochs = 2.0
    training.codebook_warmup_epochs = 0.5
    training.warmup_steps = 100
    training.ema_decay = 0.998
    training.log_every = 100
    training.image_every = 2_000
    training.checkpoint_every = 500

    model = config.generator.model
    model.depth = 4
    model.content_width = model.structure_width = 128
    model.structure_heads = 2
    training = config.generator.training
    training.batch_size = 32
    training.stage_stride = 4  # Cheap steps, for many of them in little time.
    training.learning_rate = 1e-3
    training.warmup_steps = 200
    training.ema_decay = 0.998
    training.log_every = 100
    training.image_every = 1_000

    sampling = config.sampling
    sampling.num_samples = 100
    sampling.batch_size = 50
    sampling.content_guidance = (2.0, 4.0)
    sampling.structure_guidance = (2.0, 3.0)
    sampling.temperature = 1.0
    sampling.top_p = (1.0, 0.9)
    sampling.flow_steps = 4
    sampling.structure_stages = (0, 2)
    evaluation = config.evaluation
    evaluation.num_samples = 10_000
    evaluation.classifier.epochs = 6.0
    evaluation.classifier.batch_size = 128
    return config
