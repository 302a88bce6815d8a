"""Whatever a user gives: a result that makes sense, or one line; and what was there stays."""

import hashlib
import io
import math
import pathlib
import shutil

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict
from PIL import Image

from configs import nvg_digits
from nvg_jax import editing, jobs
from nvg_jax.checkpoint import restore_ema
from nvg_jax.errors import UserError
from nvg_jax.evaluation.archive import load_samples
from nvg_jax.jobs.given import given_stages
from nvg_jax.jobs.job import check
from nvg_jax.weights import load_weights
from tests.states import abstract

_SHARED = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
_INTEGERS = st.integers(-2, 9) | st.sampled_from([2**31, 2**32, -(2**40), 10**30])
_FLOATS = st.floats(0, 2) | st.sampled_from([-0.5, math.nan, math.inf, -math.inf, 1e-30, 1e30])
_TEXTS = st.sampled_from(["", "nonsense", "train", "test[:3]", "left", "/no", "a\nb", "é\0", "%s"])
_KINDS = {bool: st.booleans(), int: _INTEGERS, float: _FLOATS, str: _TEXTS}
_KINDS[tuple] = st.tuples(_FLOATS, _FLOATS) | st.lists(st.one_of(*_KINDS.values())).map(tuple)


def obeys(call, *arguments):
    """The result; None where a UserError of one line says why there is none."""
    try:
        result = call(*arguments)
        event("a result")
        return result
    except UserError as error:
        event(str(error)[:120])
        assert str(error) and len(str(error).splitlines()) == 1, str(error)
        return None


def contents(directory):
    files = (path for path in pathlib.Path(directory).rglob("*") if path.is_file())
    return {path: hashlib.sha256(path.read_bytes()).digest() for path in files}


def leaves(config, prefix=""):
    for key in config:
        value, name = config[key], f"{prefix}{key}"
        yield from leaves(value, f"{name}.") if isinstance(value, ConfigDict) else [(name, value)]


_LEAVES = dict(leaves(nvg_digits.get_config()))


@st.composite
def changes(draw, names=tuple(_LEAVES)):
    """Other values of a few names, of the type that the command line allows."""
    few = draw(st.lists(st.sampled_from(names), min_size=1, max_size=2, unique=True))
    return {name: draw(_KINDS[type(_LEAVES[name])]) for name in few}


@st.composite
def mutated(draw, data):
    """Bytes of which a few are others, missing, or twice there."""
    data = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, max(len(data) - 1, 0)))
        end = start + draw(st.sampled_from([1, 4, 64, len(data)]))
        match draw(st.sampled_from(["other", "missing", "zero", "twice"])):
            case "other":
                data[start : start + 4] = draw(st.binary(min_size=4, max_size=4))
            case "missing":
                del data[start:end]
            case "zero":
                data[start:end] = bytes(len(data[start:end]))
            case "twice":
                data[start:start] = data[start:end]
    return bytes(data)


@settings(max_examples=300)
@given(changes())
def test_any_config_is_allowed_or_refused(changed):
    config = nvg_digits.get_config()
    config.update_from_flattened_dict(changed)
    obeys(check, config)


_OF_SAMPLING = (
    *(name for name in _LEAVES if name.startswith("sampling.")),
    *("control.structure", "control.reference", "control.stages", "control.content"),
    *("seed", "mesh.data", "mesh.fsdp", "data.eval_split", "tokenizer.checkpoint"),
)


@pytest.mark.slow
@settings(_SHARED, max_examples=40)
@given(changes(_OF_SAMPLING))
def test_any_sampling_makes_images_or_is_refused(trained, changed):
    config, workdir = trained
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict({"sampling.num_samples": 3} | changed)
    before = contents(workdir)

    def sample():
        check(config)
        model = jobs.load_model(config, workdir)
        sampling = jobs.sampling_settings(config)
        class_ids = jobs.requested_classes(config, config.sampling.num_samples)
        of_all = given_stages(config, model.tokenizer, model.tokenizer_variables)
        size = config.sampling.batch_size
        batches = jobs.generate(model, sampling, class_ids, size, config.seed, of_all)
        return np.concatenate([images for _, images in batches])

    images = obeys(sample)
    if images is not None:
        assert len(images) == config.sampling.num_samples and images.dtype == np.uint8
    assert contents(workdir) == before


_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F")


@st.composite
def image_files(draw):
    """Pictures of many kinds, some of them damaged."""
    mode, size = draw(st.sampled_from(_MODES)), draw(st.sampled_from([8, 8, 8, 4, 7, 16, 1]))
    format = draw(st.sampled_from(["PNG", "TIFF", "GIF", "JPEG", "BMP"]))
    levels = draw(st.sampled_from([1, 2, 3, 86]))
    random = np.random.default_rng(draw(st.integers(0, 9)))
    image = Image.fromarray(random.integers(0, levels, (size, size)).astype(np.uint8) * 3)
    buffer = io.BytesIO()
    try:
        image.convert(mode).save(buffer, format)
    except (OSError, ValueError, KeyError):
        image.save(buffer, "PNG")
    data = buffer.getvalue()
    return draw(st.just(data) | st.just(data) | mutated(data))


@settings(_SHARED, max_examples=200)
@given(data=image_files(), use=st.sampled_from(["structure", "reference", "mask"]))
def test_any_picture_is_used_or_refused(trained, model, tmp_path, data, use):
    config, _ = trained
    path = tmp_path / "picture"
    path.write_bytes(data)
    config = config.copy_and_resolve_references()
    of_all = None
    if use == "mask":
        config.edit.mask = str(path)
        part = obeys(editing.edited_part, config, model.tokenizer.grid)
        assert part is None or part[0].any() and part[1].any() and not part[1].all()
    else:
        config.control[use] = str(path)
        of_all = obeys(given_stages, config, model.tokenizer, model.tokenizer_variables)
    if of_all is not None:
        _, counts = np.unique(of_all.sequence.structure, return_counts=True)
        assert len(set(counts)) == 1, "its clusters are not equally large"
    assert path.read_bytes() == data


@pytest.fixture(scope="module")
def models():
    return {}


@pytest.fixture
def model(trained, models):
    """The trained model, which is loaded once."""
    config, workdir = trained
    if workdir not in models:
        models[workdir] = jobs.load_model(config, workdir)
    return models[workdir]


@st.composite
def samples_files(draw):
    count, size = draw(st.integers(0, 5)), draw(st.sampled_from([8, 8, 7]))
    kind = draw(st.sampled_from(["u1", "u1", "u1", "f4"]))
    labels = draw(st.sampled_from([None, np.arange(count), np.ones(3), np.array(["a"])]))
    arrays = {"arr_0": np.zeros((count, size, size, draw(st.sampled_from([3, 3, 1]))), kind)}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays, **({} if labels is None else {"arr_1": labels}))
    data = buffer.getvalue()
    return draw(st.just(data) | mutated(data))


@settings(_SHARED, max_examples=200)
@given(data=samples_files())
def test_any_samples_file_is_read_or_refused(tmp_path, data):
    path = tmp_path / "samples.npz"
    path.write_bytes(data)
    samples = obeys(load_samples, path, 8)
    if samples is not None:
        assert samples.images.shape[1:] == (8, 8, 3) and samples.images.dtype == np.uint8


@settings(_SHARED, max_examples=25)
@given(data=st.data())
def test_any_damage_to_checkpoints_is_noticed(trained, model, tmp_path, data):
    _, workdir = trained
    copy = tmp_path / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(f"{workdir}/generator/checkpoints", copy)
    if data.draw(st.booleans()):  # Else an older step takes its place.
        for step in sorted(copy.iterdir())[:-1]:
            shutil.rmtree(step)
    files = sorted(path for path in copy.rglob("*") if path.is_file())
    path = data.draw(st.sampled_from(files))
    original = path.read_bytes()
    path.write_bytes(data.draw(mutated(original)))
    before = contents(copy)
    wanted = abstract(model.generator_variables)
    loaded = obeys(restore_ema, copy, model.generator.architecture, wanted)
    assert loaded is None or _finite(loaded[0])
    assert contents(copy) == before


def _finite(variables):
    return all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(variables)))


@settings(_SHARED, max_examples=100)
@given(data=st.data())
def test_any_damage_to_a_file_of_weights_is_noticed(exported, model, tmp_path, data):
    original = (exported / "tokenizer.safetensors").read_bytes()
    numbers = int.from_bytes(original[:8], "little") + 100  # After names and shapes.
    path = tmp_path / "tokenizer.safetensors"
    path.write_bytes(data.draw(mutated(original[:numbers])) + original[numbers:])
    wanted = abstract(model.tokenizer_variables)
    loaded = obeys(load_weights, path, wanted, model.tokenizer.architecture)
    if loaded is not None:
        jax.tree.map(np.testing.assert_array_equal, loaded, model.tokenizer_variables)
