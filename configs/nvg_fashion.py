"""A small NVG on Fashion-MNIST's photographs of clothes."""

from configs import base


def get_config():
    config = base.get_config(depth=3, epochs=2, decay_start=0.5, decay_to=0.05)

    data = config.data
    data.dataset = "fashion_mnist"
    data.eval_split = "test"
    data.num_classes = 10
    data.image_size = 32
    data.resize_ratio = 1.0  # The clothes fill their frames: a random crop would cut them.
    data.num_workers = 0

    tokenizer = config.tokenizer
    tokenizer.model.width = 16
    tokenizer.model.multipliers = (1, 2, 4)  # 8 x 8 positions: stages 0..6.
    tokenizer.model.num_blocks = 1
    tokenizer.model.norm_groups = 8
    tokenizer.model.latent_channels = 16
    tokenizer.model.vocab_size = 512
    training = tokenizer.training
    training.batch_size = 64
    training.epochs = 2.0
    training.codebook_warmup_epochs = 0.5
    training.learning_rate = 1e-3
    training.warmup_steps = 100
    training.warmup_from = 0.01
    training.ema_decay = 0.998
    training.lpips_weight = 0.0  # The frozen networks know nothing of 32 x 32 clothes.
    training.adversarial_weight = 0.0
    training.log_every = 100
    training.image_every = 2_000
    training.checkpoint_every = 500

    model = config.generator.model
    model.content_width = 64
    model.content_heads = 2
    model.structure_width = 64
    model.structure_heads = 2
    model.drop_path = 0.0
    model.remat = "none"  # There is memory enough.
    model.dtype = "float32"
    training = config.generator.training
    training.batch_size = 32  # Small, for many steps in little time.
    training.learning_rate = 2e-3
    training.warmup_steps = 100
    training.ema_decay = 0.995
    training.repa.weight = 0.0
    training.log_every = 100
    training.image_every = 1_000
    training.checkpoint_every = 250

    sampling = config.sampling
    sampling.num_samples = 100
    sampling.batch_size = 50
    sampling.content_guidance = (1.0, 2.0)
    sampling.structure_guidance = (1.0, 2.0)
    sampling.top_p = (1.0, 0.9)
    evaluation = config.evaluation
    evaluation.features = "classifier"  # Inception and LPIPS know nothing of these clothes.
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
    evaluation.num_samples = 10_000
    evaluation.classifier.epochs = 6.0
    evaluation.classifier.batch_size = 128
    evaluation.variation.distance = "features"
    evaluation.structure_gap.metrics = (
        "fid",
        "precision_recall",
        "classifier_agreement",
        "class_agreement",
        "diversity",
    )
    return config
