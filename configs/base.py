"""What the ImageNet configs share: the paper's recipe (paper, Sec. 4 and Appendix A)."""

import ml_collections


def get_config(
    depth: int,
    epochs: int | float,
    decay_start: float,
    decay_to: float,
    fsdp: int = 1,
    remat: str = "dots",
) -> ml_collections.ConfigDict:
    """The paper's model of a depth on ImageNet at 256 x 256.

    decay_start: fraction of training after which the learning rate falls linearly, to the
    fraction `decay_to` of its peak. fsdp: devices that share a copy of the training's state.
    remat: what the backward pass recomputes.
    """
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.method = "nvg"  # Or, to compare: 'var', 'flow'. See docs/baselines.md.
    config.stages = ()  # That are painted, of 0..K, with K: as (0, 2, 4, 6, 8); empty: all.
    config.pretrained = ""  # Weights by name, where no checkpoint is named below: docs/weights.md.

    config.data = data = ml_collections.ConfigDict()
    data.dataset = "imagenet2012"
    data.data_dir = ""  # TFDS's default: $TFDS_DATA_DIR or ~/tensorflow_datasets.
    data.train_split = "train"
    data.eval_split = "validation"
    data.num_classes = 1000
    data.image_size = 256
    data.resize_ratio = 1.125  # Shorter side before the crop, in units of image_size.
    data.num_workers = 16  # Reading processes per host; 0 reads in threads.

    config.mesh = mesh = ml_collections.ConfigDict()  # Devices along each axis; -1: the rest.
    mesh.data = -1  # Batches are split.
    mesh.fsdp = fsdp  # Batches are split, and parameters with what the optimizer keeps of them.
    mesh.tensor = 1  # The inner width of the blocks is split.

    config.token_cache = cache = ml_collections.ConfigDict()
    # Tokenized images, read in place of images. Empty: tokenize on the fly, or in the workdir once
    # for all if there is only one crop of each image, and more than one epoch.
    cache.directory = ""
    cache.num_crops = 8  # Random crops of each image that the job `tokenize` writes.
    cache.batch_size = 256
    cache.shard_size = 32_768  # Sequences a file.

    config.frozen = frozen = ml_collections.ConfigDict()
    frozen.directory = ""  # Where `nvg_jax.interop.fetch` put things; empty: its default.
    frozen.random = False  # Random weights in their place, for trials without a download.

    config.tokenizer = tokenizer = ml_collections.ConfigDict()
    tokenizer.checkpoint = ""  # Weights to use as they are; empty: train in the workdir.
    tokenizer.model = ml_collections.ConfigDict()
    tokenizer.model.width = 128
    tokenizer.model.multipliers = (1, 2, 4, 4, 4)
    tokenizer.model.num_blocks = 2
    tokenizer.model.norm_groups = 32  # Of channels, normalised together.
    tokenizer.model.latent_channels = 32
    tokenizer.model.vocab_size = 4096
    tokenizer.model.clustering = "greedy"  # Or, to compare: 'principal', 'spatial', 'random'.
    tokenizer.model.scales = ()  # Sides of VAR's grids; empty: as its paper, up to the latent's.
    # Of float32 convolutions: 'bfloat16', 'tensorfloat32' as in the paper's training, 'float32'.
    tokenizer.model.precision = "tensorfloat32"
    tokenizer.model.dtype = "float32"  # Of activations; 'bfloat16' needs half the memory traffic.
    # What the backward pass recomputes: 'none', 'dots' (all but convolutions), 'full'.
    tokenizer.model.remat = "none"

    tokenizer.training = training = ml_collections.ConfigDict()
    training.batch_size = 256
    training.microbatches = 1  # Parts of a batch whose gradients are added one after the other.
    training.epochs = 100.0
    training.codebook_warmup_epochs = 1.0  # In which every code gets a gradient.
    training.learning_rate = 1e-4
    training.schedule = "cosine"
    training.warmup_steps = 0
    training.warmup_from = 1.0
    training.decay_start = 0.0
    training.decay_to = 0.0
    training.weight_decay = 0.0
    training.clip_norm = 1.0
    training.ema_decay = 0.9999
    training.lpips_weight = 1.0
    training.adversarial_weight = 0.1
    training.discriminator = ml_collections.ConfigDict()
    training.discriminator.input_size = 224  # Images are cropped or shrunk to this side.
    training.discriminator.weight_decay = 5e-4
    training.discriminator.lecam_weight = 1e-3
    training.log_every = 100
    training.image_every = 5_000
    training.checkpoint_every = 2_500
    training.keep_checkpoints = 3
    tokenizer.scale_batches = 64  # Training batches on which the canvas scales are measured.

    config.generator = generator = ml_collections.ConfigDict()
    generator.checkpoint = ""  # Weights to sample from or to start training at.
    generator.model = ml_collections.ConfigDict()
    generator.model.depth = depth
    generator.model.content_width = 64 * depth
    generator.model.content_heads = depth
    generator.model.structure_width = 32 * depth
    generator.model.structure_heads = depth // 2
    generator.model.drop_path = 0.1 * depth / 24
    # What the backward pass recomputes: 'full', everything; 'dots', what is no linear layer's
    # product or fused attention; 'none'. For the choice see docs/scale.md.
    generator.model.remat = remat
    generator.model.attention = "xla"  # Or 'splash', on TPUs; 'cudnn', on GPUs with bfloat16.
    generator.model.dtype = "bfloat16"
    generator.model.guided_content = False  # Takes its guidance as an input: no second pass.
    # Or, for few steps, 'masked', or 'mean_flow', which needs no second pass.
    generator.model.structure = "flow"
    # The ablations of the paper's Table 3 turn these around one at a time.
    generator.model.noised_canvas = False
    generator.model.known_structure = True  # In the structure model's input; else pure noise.
    generator.model.structure_rope = True
    generator.model.predict_final_canvas = True  # Before the tokens; else tokens directly.

    generator.training = training = ml_collections.ConfigDict()
    training.batch_size = 768
    training.microbatches = 1
    training.stage_stride = 1  # So many images of a batch share the stages; 1: all of each image.
    training.epochs = float(epochs)
    training.class_dropout = 0.1
    training.repa = ml_collections.ConfigDict()
    training.repa.weight = 0.5
    training.repa.depth = 8  # Blocks of the content model before the aligned tokens.
    training.repa.hidden = 2048
    training.learning_rate = training.get_oneway_ref("batch_size").to_float() * 1e-4 / 256
    training.schedule = "linear"
    training.warmup_steps = 1_000
    training.warmup_from = 0.005
    training.decay_start = decay_start
    training.decay_to = decay_to
    training.weight_decay = 0.05
    training.clip_norm = 1.0
    training.ema_decay = 0.9999
    training.log_every = 100
    training.image_every = 10_000
    training.checkpoint_every = 2_500
    training.keep_checkpoints = 3

    config.sampling = sampling = ml_collections.ConfigDict()
    sampling.num_samples = 256  # The paper's metrics take 50,000.
    sampling.batch_size = 256
    sampling.classes = ()  # Empty: every class in turn.
    sampling.content_guidance = (1.0, 3.5)  # At the first and the last stage.
    sampling.structure_guidance = (1.0, 2.5)  # The last two stages make no structure.
    sampling.temperature = 1.0  # 0 takes the most likely token.
    sampling.top_k = 0  # 0: all tokens.
    sampling.top_p = (1.0, 0.5)  # Falls from the first to the second value over the stages.
    sampling.flow_steps = 25  # Of each run of the structure model; of the method 'flow', of all.
    sampling.structure_stages = ()  # At which the structure generator runs; empty: all.
    sampling.gumbel_split = False  # Draw the halves of a split instead of taking the top half.

    config.control = control = ml_collections.ConfigDict()
    control.structure = ""  # A mask's file, or a shape as circle:0.5,0.5,0.3: docs/sampling.md.
    control.reference = ""  # An image's file, or an example as validation:7.
    control.stages = 0  # First stages that they give; 0: all of a reference, few for a map.
    control.content = False  # The reference gives its tokens as well as its structure.
    control.strict = False  # Refuse a map that is not balanced.
    control.num_samples = 4  # Rows in each half of the picture of the job `control`.

    config.edit = edit = ml_collections.ConfigDict()
    edit.image = ""  # An image's file, or an example as validation:7.
    edit.mask = ""  # What is made anew: a mask's file, where it is bright, or a shape as left.
    edit.invert = False  # Makes the rest anew.
    edit.class_id = -1  # Of what is made; -1: none.
    edit.num_samples = 8

    config.export = export = ml_collections.ConfigDict()
    export.format = "orbax"  # Directories; or 'safetensors', one file each.
    export.dtype = "float32"  # Of parameters; or 'bfloat16', 'float16', half as large.

    config.compile = compile = ml_collections.ConfigDict()
    compile.topology = "v5e:16x16"  # Or v4:..., v5p:..., v6e:..., or 'local'.
    compile.tasks = ("tokenizer", "generator")
    compile.largest_batch = True  # Look for it: compiles a few times.

    config.evaluation = evaluation = ml_collections.ConfigDict()
    evaluation.metrics = (
        # Of reconstructions:
        "psnr",
        "ssim",
        "lpips",
        "rfid",
        "codebook_usage",
        # Of samples:
        "fid",
        "sfid",
        "inception_score",
        "precision_recall",
    )
    evaluation.batch_size = 32  # Images on each device at a time.
    evaluation.num_samples = 50_000  # 0: only what needs no samples.
    evaluation.samples = ""  # An .npz file of samples to measure in place of new ones.
    # An .npz file to measure against, or 'adm_imagenet256', fetched; empty: the training split.
    evaluation.reference = ""
    evaluation.features = "inception"  # Or 'classifier', trained on the dataset.
    evaluation.classifier = classifier = ml_collections.ConfigDict()
    classifier.epochs = 20.0
    classifier.batch_size = 64
    classifier.learning_rate = 2e-3
    evaluation.variation = variation = ml_collections.ConfigDict()
    variation.distance = "lpips"  # Or 'features'.
    variation.num_references = 32
    variation.num_samples = 4  # Of each reference.
    evaluation.edited = edited = ml_collections.ConfigDict()  # By the mask of `config.edit`.
    edited.metrics = ("fid", "class_agreement")  # Of edited images.
    edited.num_samples = 1_000
    evaluation.structure_gap = structure_gap = ml_collections.ConfigDict()
    structure_gap.metrics = ("fid", "precision_recall")  # Of samples.
    structure_gap.num_samples = 2_000  # For each number of given stages.
    structure_gap.stages = ()  # How many first stages are given; empty: 0, 2, ..., K.
    evaluation.structure_stability = stability = ml_collections.ConfigDict()
    stability.num_images = 500  # The first of the split.
    stability.noise = (2.0, 8.0)  # Standard deviations, in levels of 8 bits.
    stability.jpeg = (90, 50)  # Qualities, from 1 to 100.
    stability.shifts = (1,)  # To the right, in positions of the latent.
    stability.clusterings = ("principal",)  # Of the same latents, beside the tokenizer's own.
    stability.other_tokenizer = ""  # Weights to compare with, as of another seed.
    evaluation.guided = guided = ml_collections.ConfigDict()
    guided.stages = 4  # First stages that a mask gives.
    guided.num_samples = 192
    evaluation.num_pictures = 8  # Images in the pictures of the job `reconstruct`.
    config.lock()  # A name that is misspelt in a config is an error.
    return config
