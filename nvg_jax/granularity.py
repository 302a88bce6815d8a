"""The granularity sequence and its algebra (paper, Sec. 3.1): pure functions, no parameters.

An image of L = 2^K latent positions is described by stages k = 0..K. Stage k paints all positions
with 2^k tokens of L / 2^k positions each. Cluster j of stage k splits into clusters 2j and 2j + 1
of stage k + 1, so that one leaf label per position holds the structure of every stage, and one heap
the tokens of all.

The words of this program:
  stage     a granularity stage; an optimizer's step is a `step`.
  ladder    which stages are painted, rising, the last one among them; as a value empty for all.
  structure which positions share a token, at all stages.
  leaf      a position's label at the last stage; its top k bits are its label at stage k.
  content   which tokens the clusters have; tokens are codebook entries.
  heap      the tokens of the painted stages in one array; of all: cluster j of stage k stands at
            2^k - 1 + j.
  brush     what one stage adds: its tokens painted on their clusters, and refined.
  canvas    the sum of the brushes so far; the last one is the quantized latent.
  given     what is not generated: structure, or structure and content, of the first stages.

The symbols of shapes, the same everywhere:
  B batch, L positions, K last stage, N clusters, C latent channels, V codebook, D width, H heads,
  T transformer tokens, E width of a head; `stages` those that are painted, by default K + 1;
  `canvases` one more; `splits` the runs of the structure generator, by default K - 1; `scales`
  K + 2; `heap` all tokens, by default 2L - 1; images are [B, height, width, 3].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float, Int, Num

from nvg_jax.errors import UserError

Stage = int | Int[Array, ""] | Int[Array, "B"]


class GranularitySequence(NamedTuple):
    """A batch of images as structure and content of all stages.

    structure: each position's leaf, a permutation of 0..L-1 per image; the top k bits are its label
        at stage k. None in a baseline, which has none.
    tokens: codebook entries as a heap, stage after stage by cluster.
    """

    structure: Int[Array, "B L"] | None
    tokens: Int[Array, "B heap"]


def last_stage(num_positions: int) -> int:
    """K with `2^K == num_positions`; raises UserError if there is none."""
    if num_positions < 2 or num_positions & (num_positions - 1):
        raise UserError(
            f"{num_positions} latent positions are not a power of two: choose an image size and a "
            "downsampling that give 4, 16, 64, 256, ... positions"
        )
    return num_positions.bit_length() - 1


def painted_stages(ladder: Sequence[int], last_stage: int) -> tuple[int, ...]:
    """The stages of a ladder up to K, as `config.stages` names them: all if it is empty.

    UserError if they do not rise, or K is not the last of them.
    """
    stages = tuple(ladder) or tuple(range(last_stage + 1))
    if list(stages) != sorted(set(stages)) or stages[0] < 0 or stages[-1] != last_stage:
        raise UserError(
            f"config.stages={stages}: name rising stages from 0 on, of which the last is "
            f"{last_stage}, or none, as (), for all"
        )
    return stages


def num_tokens(stages: Sequence[int]) -> int:
    """The tokens of an image of which these stages are painted: the length of its heap."""
    return sum(2**stage for stage in stages)


def ladder_in_words(stages: Sequence[int]) -> str:
    """What a model's line says of its painted stages: nothing if they are all."""
    is_whole = len(stages) == stages[-1] + 1
    return "" if is_whole else f", stages {','.join(map(str, stages))}"


def _per_position(stage: Stage) -> int | Int[Array, ""] | Int[Array, "B 1"]:
    """Lets one stage per image broadcast against `[B, L]`."""
    return stage[:, None] if isinstance(stage, jax.Array) and stage.ndim == 1 else stage


def labels_at(
    structure: Int[Array | np.ndarray, "B L"], stage: Stage
) -> Int[Array | np.ndarray, "B L"]:
    """The structure map of a stage, in `[0, 2^stage)`. `stage` is one number or one per image."""
    return structure >> (last_stage(structure.shape[-1]) - _per_position(stage))


def structure_from_labels(labels: Int[Array, "B L"], stage: Stage) -> Int[Array, "B L"]:
    """A partial structure whose top `stage` bits are `labels` and whose undecided bits are zero."""
    return labels << (last_stage(labels.shape[-1]) - _per_position(stage))


def structure_embedding(structure: Int[Array, "B L"], stage: Stage) -> Float[Array, "B L K"]:
    """The bits of a stage's labels, most significant first, as 0 or 2; undecided channels are 1.

    Only the top `stage` bits of `structure` matter. Paper, Sec. 3.3.
    """
    num_bits = last_stage(structure.shape[-1])
    channel = jnp.arange(num_bits)
    bits = (structure[..., None] >> (num_bits - 1 - channel)) & 1
    stage = jnp.asarray(_per_position(stage))[..., None]
    return jnp.where(channel < stage, 2.0 * bits, 1.0).astype(jnp.float32)


def stage_slice(stage: int, stages: Sequence[int] | None = None) -> slice:
    """Where the tokens of a stage lie in the heap of the painted stages, by default all."""
    before = range(stage) if stages is None else [k for k in stages if k < stage]
    return slice(num_tokens(before), num_tokens(before) + 2**stage)


def stage_tokens(
    tokens: Int[Array | np.ndarray, "B heap"], stage: int
) -> Int[Array | np.ndarray, "B N"]:
    """The `2^stage` tokens of one stage, by cluster."""
    return tokens[:, stage_slice(stage)]


def structure_at(structure: Int[Array, "B L"], stage: Stage) -> Int[Array, "B L"]:
    """The structure with the bits that are not decided at a stage set to zero."""
    return structure_from_labels(labels_at(structure, stage), stage)


def by_stage(
    tokens: Num[Array | np.ndarray, "B heap"], stages: Sequence[int] | None = None
) -> list[Num[Array | np.ndarray, "B _"]]:
    """The tokens, or numbers of them, of each painted stage, by default of all."""
    if stages is None:
        stages = range(last_stage((tokens.shape[-1] + 1) // 2) + 1)
    return [tokens[:, stage_slice(stage, stages)] for stage in stages]


def token_counts(tokens: Sequence[Int[Array, "B _"]], vocab_size: int) -> Int[Array, "stages V"]:
    """How often each stage uses each code, in all images of the batch together.

    tokens: of each stage.
    """
    counts = jnp.zeros((len(tokens), vocab_size), jnp.int32)
    for stage, of_stage in enumerate(tokens):
        counts = counts.at[stage, of_stage].add(1)
    return counts


def codebook_usage(
    counts: Int[np.ndarray, "stages V"],
) -> tuple[Float[np.ndarray, "stages"], float]:
    """Share of the codes used at least once: by each stage, and by all stages together."""
    used = np.asarray(counts) > 0
    return used.mean(axis=1), float(used.any(axis=0).mean())


def cluster_mean(
    values: Float[Array, "B L C"], labels: Int[Array, "B L"], num_clusters: int
) -> Float[Array, "B {num_clusters} C"]:
    """Mean of the values over each cluster, in float32; an empty cluster gives zero."""
    member = jax.nn.one_hot(labels, num_clusters, axis=1, dtype=jnp.float32)
    total = jnp.einsum(
        "bnl,blc->bnc", member, values.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST
    )
    return total / jnp.maximum(member.sum(-1, keepdims=True), 1.0)


def paint(values: Float[Array, "B N C"], labels: Int[Array, "B L"]) -> Float[Array, "B L C"]:
    """Gives every position the vector of its cluster."""
    return jnp.take_along_axis(values, labels[..., None], axis=1)


def rank_in_cluster(
    values: Float[Array, "B L"], labels: Int[Array, "B L"], num_clusters: int | Int[Array, ""]
) -> Int[Array, "B L"]:
    """How many positions of the same cluster come before each, from the highest value down.

    Of equal values the smaller position comes first. labels: balanced, in `[0, num_clusters)`, of
    which `num_clusters` may be traced.
    """
    position = jnp.broadcast_to(jnp.arange(labels.shape[-1], dtype=labels.dtype), labels.shape)
    ordered = jax.lax.sort((labels, -values, position), dimension=-1, num_keys=3)[-1]
    rank = position % (labels.shape[-1] // num_clusters)
    return jax.lax.sort((ordered, rank), dimension=-1, num_keys=1)[-1]


def balanced_split(
    scores: Float[Array, "B L"],
    labels: Int[Array, "B L"],
    num_clusters: int | Int[Array, ""],
    gumbel: Float[Array, "B L"] | None = None,
) -> Int[Array, "B L"]:
    """Splits every cluster into two halves of equal size by the scores (paper, Sec. 3.3).

    Cluster j's half with the higher `p = clip(score, -1, 1) + 1` becomes 2j + 1, the other 2j. With
    `gumbel` noise the halves are drawn: the top half of `log p + gumbel`. (Normalising p within its
    cluster would change neither order.) Among equals the smaller position counts as the higher.

    A position whose score is infinite is in the half that the sign names, however the others fall,
    as long as no half is named by more positions than it has places. So it always is where they are
    named by another structure in which they have the same labels: each half there holds all that
    are named for it, and has as many places as here; the others fill up what is left of both.

    labels: balanced, in `[0, num_clusters)`; `num_clusters` may be traced.
    Returns balanced labels in `[0, 2 * num_clusters)`.
    """
    value = jnp.clip(scores, -1.0, 1.0) + 1.0
    if gumbel is not None:
        value = jnp.log(value) + gumbel
    lowest = jnp.finfo(value.dtype).min  # The logarithm of zero does not count as named.
    value = jnp.where(jnp.isinf(scores), scores, jnp.maximum(value, lowest))
    half = labels.shape[-1] // (2 * num_clusters)
    upper = rank_in_cluster(value, labels, num_clusters) < half
    return 2 * labels + upper.astype(labels.dtype)


def shared_out(arrays: Sequence[Array], stride: int) -> Array:
    """Stages of groups of images, `[B / stride, stages, ...]`, from the batch at each stage.

    The images of a group, which stand next to each other in the batch, share its stages: stage k is
    that of image `k % stride`. With a stride of 1 every image has all of them.
    """
    groups = (rearrange(array, "(g i) ... -> g i ...", i=stride) for array in arrays)
    return jnp.stack([group[:, stage % stride] for stage, group in enumerate(groups)], axis=1)


def flat(array: Array) -> Array:
    """The stages of all groups in one axis, from `shared_out`: a batch for a network."""
    return rearrange(array, "g s ... -> (g s) ...")
