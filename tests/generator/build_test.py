import jax.numpy as jnp
import pytest

from configs import nvg_d12
from nvg_jax.errors import UserError
from nvg_jax.generator.build import build_generator, build_tokenizer


@pytest.fixture
def config():
    return nvg_d12.get_config()


def test_generator_is_built_over_the_tokenizers_positions_and_codes(config):
    config.data.image_size = 128
    config.data.num_classes = 7
    config.tokenizer.model.vocab_size = 512
    tokenizer, generator = build_tokenizer(config), build_generator(config)
    assert tokenizer.grid == generator.grid == (8, 8)
    assert tokenizer.last_stage == generator.last_stage == 6
    assert tokenizer.vocab_size == generator.vocab_size == 512
    assert (generator.depth, generator.num_classes) == (12, 7)
    assert generator.dtype == jnp.bfloat16
    assert generator.drop_path == pytest.approx(0.05)


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("data.image_size", 250, "config.data.image_size=250 is not a multiple of 16"),
        ("data.image_size", 96, "36 latent positions are not a power of two"),
        ("data.image_size", 16, "1 latent positions are not a power of two"),
        ("tokenizer.model.width", 48, "config.tokenizer.model.width=48 is not a multiple of 32"),
        ("generator.model.content_heads", 7, "content_width=768 .* content_heads=7"),
        ("generator.model.structure_heads", 0, "structure_width=384 .* structure_heads=0"),
        ("generator.model.structure_heads", 24, "a head of width 16 has no room .* 8 structure"),
    ],
)
def test_sizes_that_do_not_fit_are_named(config, key, value, message):
    config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=message):
        build_generator(config)


def test_a_dtype_that_does_not_exist_is_named(config):
    config.generator.model.dtype = "float31"
    with pytest.raises(UserError, match="config.generator.model.dtype=float31"):
        build_generator(config)
