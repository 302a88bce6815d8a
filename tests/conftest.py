"""Small models with the reference weights, next to the reference arrays they have to reproduce."""

import gc
import itertools
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange
from hypothesis import settings
from ml_collections import ConfigDict

from configs import nvg_digits
from nvg_jax import clustering, sharding
from nvg_jax.generator.model import Generator
from nvg_jax.generator.sizes import Sizes, StackSizes
from nvg_jax.granularity import GranularitySequence
from nvg_jax.interop import released
from nvg_jax.tokenizer.autoencoder import downsampling
from nvg_jax.tokenizer.model import Tokenizer

# The first example of a shape is compiled, which no deadline allows for.
settings.register_profile("compiled", deadline=None, max_examples=50)
settings.load_profile("compiled")

# Compiled programs are shared by all test processes, and those that tests start.
TESTS = pathlib.Path(__file__).parent
_CACHE = os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(TESTS.parent / ".jax_cache"))
jax.config.update("jax_compilation_cache_dir", _CACHE)

# Small programs take longer to compile than to run: without XLA's late passes, a third less.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
jax.config.update("jax_disable_most_optimizations", True)

# Tracing causes many collections, none of which need look at what imports made.
gc.freeze()

_STATE_DICT = "state_dict."


def pytest_itemcollected(item: pytest.Item) -> None:
    """Tests that share a training go to the same worker of pytest-xdist, which makes it once.

    Slow tests, which start many processes, have more time than the others.
    """
    if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
        item.add_marker(pytest.mark.timeout(900))
    for fixture, group in (("trained", "trained"), ("uninterrupted", item.path.stem)):
        if fixture in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group(group))


MAPS = pathlib.Path("/proc/self/maps")


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    """Forgets what was compiled before it is too much: a program has ten memory maps or more, and
    Linux ends a process that has 65,530."""
    yield
    if MAPS.exists() and len(MAPS.read_bytes().splitlines()) > 20_000:
        jax.clear_caches()


class Golden(NamedTuple):
    """A module, its variables, the `state_dict` they come from, and the reference arrays."""

    module: Tokenizer | Generator
    variables: Any
    state_dict: dict[str, np.ndarray]
    arrays: dict[str, np.ndarray]


class Sequences(NamedTuple):
    """What the generator's reference arrays are trained on."""

    sequence: GranularitySequence
    canvases: Any
    class_id: Any


def _load(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    state_dict = {
        key.removeprefix(_STATE_DICT): arrays.pop(key)
        for key in list(arrays)
        if key.startswith(_STATE_DICT)
    }
    return state_dict, arrays


@pytest.fixture(scope="session")
def golden_directory() -> pathlib.Path:
    """The reference arrays; others of the same form can be put in their place."""
    return pathlib.Path(os.environ.get("NVG_JAX_GOLDEN", TESTS / "golden"))


@pytest.fixture(scope="session")
def random_variables() -> Callable[[Callable[[Any], Any]], Any]:
    """What an initialiser makes, of small normal numbers: compiling it takes seconds."""

    def fill(init: Callable[[Any], Any]) -> Any:
        rng = np.random.default_rng(0)
        shapes = sharding.unnamed(jax.eval_shape(init, jax.random.key(0)))
        return jax.tree.map(
            lambda leaf: jnp.asarray(0.1 * rng.standard_normal(leaf.shape), leaf.dtype), shapes
        )

    return fill


def _tokenizer(arrays: dict[str, np.ndarray], state_dict: Any, num_positions: int) -> Tokenizer:
    """The golden tokenizer, for images of so many positions."""
    multipliers = tuple(map(int, arrays["config.ch_mult"]))
    vocab_size, channels = state_dict["quantize.embedding.weight"].shape
    return Tokenizer(
        image_size=round(num_positions**0.5) * downsampling(multipliers),
        width=int(arrays["config.ch"]),
        multipliers=multipliers,
        num_blocks=int(arrays["config.num_res_blocks"]),
        latent_channels=channels,
        vocab_size=vocab_size,
    )


@pytest.fixture(scope="session")
def golden_tokenizer(golden_directory) -> Golden:
    """The scales are made up: the references have none."""
    state_dict, arrays = _load(golden_directory / "tokenizer.npz")
    module = _tokenizer(arrays, state_dict, arrays["labels"].shape[-1])
    scales = np.linspace(1.0, 2.0, module.last_stage + 2, dtype=np.float32)
    variables = released.tokenizer_variables(state_dict, module, scales)
    return Golden(module, jax.tree.map(jnp.asarray, variables), state_dict, arrays)


@pytest.fixture(scope="session")
def golden_generator(golden_directory) -> Golden:
    """As the paper's generators of its depth."""
    state_dict, arrays = _load(golden_directory / "generator.npz")
    depth, (channels, height, width) = int(arrays["config.depth"]), arrays["latent"].shape[1:]
    module = Generator(
        Sizes(
            content=StackSizes(depth, width=64 * depth, num_heads=depth),
            structure=StackSizes(depth, width=32 * depth, num_heads=depth // 2),
            grid=(height, width),
            latent_channels=channels,
            vocab_size=int(arrays["config.vocab"]),
            num_classes=int(arrays["config.num_classes"]),
        )
    )
    variables = released.generator_variables(state_dict, module)
    return Golden(module, jax.tree.map(jnp.asarray, variables), state_dict, arrays)


@pytest.fixture(scope="session")
def golden_generator_tokenizer(golden_tokenizer, golden_generator) -> Golden:
    """The tokenizer under the golden generator: its own codebook, refiners and canvas scales.

    The references were computed with the published scales; the buffer beside them is rounded.
    """
    own = {
        name: tensor
        for name, tensor in golden_tokenizer.state_dict.items()
        if not name.startswith("quantize.")
    }
    state_dict = own | golden_generator.state_dict
    length = golden_generator.module.sizes.num_positions
    module = _tokenizer(golden_tokenizer.arrays, state_dict, length)
    scales = None
    if module.last_stage + 2 != len(released.PUBLISHED_CANVAS_SCALES):
        scales = released.canvas_scales_of(state_dict)
    variables = released.tokenizer_variables(state_dict, module, scales)
    return Golden(module, jax.tree.map(jnp.asarray, variables), state_dict, golden_generator.arrays)


@pytest.fixture(scope="session")
def full_size(golden_tokenizer) -> Golden:
    """The golden tokenizer over 16 x 16 positions, with the first refiner at all nine stages."""
    refiner = "quantize.quant_resi."
    state_dict = {
        name: tensor
        for name, tensor in golden_tokenizer.state_dict.items()
        if not name.startswith(refiner)
    }
    for stage, part in itertools.product(range(9), ("weight", "bias")):
        first = golden_tokenizer.state_dict[f"{refiner}0.{part}"]
        state_dict[f"{refiner}{stage}.{part}"] = first
    module = _tokenizer(golden_tokenizer.arrays, state_dict, 256)
    return Golden(module, None, state_dict, golden_tokenizer.arrays)


@pytest.fixture(scope="session")
def golden_sequences(golden_generator_tokenizer) -> Sequences:
    tokenizer, variables, _, arrays = golden_generator_tokenizer

    @jax.jit
    def quantize(latent):
        structure = clustering.cluster(latent)
        quantized = tokenizer.apply(
            variables, latent, structure, method=lambda module, *args: module.quantizer(*args)
        )
        return structure, quantized

    latent = jnp.asarray(rearrange(arrays["latent"], "b c h w -> b (h w) c"), jnp.float32)
    structure, quantized = quantize(latent)
    sequence = GranularitySequence(structure, quantized.tokens)
    class_id = jnp.asarray(arrays["class_label"], jnp.int32)
    return Sequences(sequence, quantized.canvases, class_id)


@pytest.fixture(scope="session")
def run_program() -> Callable[..., str]:
    """Runs a program of tests/programs on so many simulated devices; gives what it prints."""

    def run(name: str, *arguments: str, devices: int, input: str = "", **environment: str) -> str:
        flags = f"--xla_force_host_platform_device_count={devices}"
        done = subprocess.run(
            [sys.executable, str(TESTS / "programs" / f"{name}.py"), *arguments],
            env=os.environ
            | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": str(TESTS.parent)}
            | environment,
            input=input,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="session")
def digits_dir(tmp_path_factory) -> str:
    """A folder in which the digits are prepared."""
    from nvg_jax.data.prepare import prepare  # Imports TensorFlow, which few tests need.

    directory = str(tmp_path_factory.mktemp("datasets"))
    prepare("digits", directory)
    return directory


def first_scenes(builder_class: type, directory: str) -> str:
    """Prepares the first 20 scenes of each split of a dataset in a folder, which it returns."""
    import tensorflow_datasets as tfds

    first = tfds.download.DownloadConfig(max_examples_per_split=20)
    builder_class(data_dir=directory).download_and_prepare(
        download_config=first, file_format="array_record"
    )
    return directory


@pytest.fixture(scope="session")
def shapes_dir(tmp_path_factory) -> str:
    """A folder in which the shapes are prepared, but only the first 20 scenes of each split."""
    from nvg_jax.data.shapes import Shapes

    return first_scenes(Shapes, str(tmp_path_factory.mktemp("shapes")))


@pytest.fixture(scope="session")
def crowds_dir(tmp_path_factory) -> str:
    """As `shapes_dir`, of scenes with several objects."""
    from nvg_jax.data.shapes import Crowds

    return first_scenes(Crowds, str(tmp_path_factory.mktemp("crowds")))


@pytest.fixture(scope="session")
def make_tiny_config(digits_dir) -> Callable[[], ConfigDict]:
    """The digits config with models and trainings so small that a job takes seconds."""

    def make() -> ConfigDict:
        config = nvg_digits.get_config()
        config.data.data_dir = digits_dir
        config.data.image_size = 8
        model = config.tokenizer.model
        model.multipliers, model.latent_channels, model.vocab_size = (1, 1), 4, 16
        config.tokenizer.scale_batches = 2
        model = config.generator.model
        model.depth, model.content_width, model.structure_width = 1, 32, 32
        model.content_heads = 1
        for training in (config.tokenizer.training, config.generator.training):
            training.batch_size = 64
            training.epochs = 6 / 22  # Steps of an epoch of 1,437 images.
            training.log_every = 2
            training.checkpoint_every = 2
            training.image_every = 4
        config.sampling.num_samples = 20
        config.sampling.batch_size = 12  # Which four devices can share.
        config.sampling.flow_steps = 2
        evaluation = config.evaluation
        # SSIM's windows do not fit into 8 pixels.
        evaluation.metrics = tuple(name for name in evaluation.metrics if name != "ssim")
        evaluation.num_samples = 20
        evaluation.classifier.epochs = 2.0
        evaluation.variation.num_references = 3
        evaluation.variation.num_samples = 2
        evaluation.structure_gap.num_samples = 40
        config.control.num_samples = 2
        return config

    return make


@pytest.fixture
def tiny_config(make_tiny_config) -> ConfigDict:
    return make_tiny_config()


@pytest.fixture
def heeding_sigint():
    """New processes heed Ctrl-C, also where a script started the tests in the background.

    They inherit then that it is ignored, which a shell cannot undo.
    """
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)
