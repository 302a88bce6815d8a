"""The set that `torch.topk` selects on the CPU, ties included, in plain NumPy.

The release splits a cluster by `torch.topk` over clipped scores. Many are clipped to the same
value, and which of them are taken is left to the C++ library's quickselect. To compare a whole run
with the release entry by entry, its choice has to be repeated.
"""

import numpy as np
from jaxtyping import Float, Int


def torch_topk(values: Float[np.ndarray, "N"], k: int) -> Int[np.ndarray, "k"]:
    """Indices of the `k` largest values, for `64 k > N` (for fewer, torch sorts a heap instead)."""
    assert 64 * k > len(values)
    item = np.arange(len(values))

    def before(i: int, j: int) -> bool:
        return values[item[i]] > values[item[j]]

    def swap(i: int, j: int) -> None:
        item[[i, j]] = item[[j, i]]

    def move_median_of_three_to(result: int, a: int, b: int, c: int) -> None:
        if before(a, b):
            swap(result, b if before(b, c) else c if before(a, c) else a)
        else:
            swap(result, a if before(a, c) else c if before(b, c) else b)

    def partition(first: int, last: int, pivot: int) -> int:
        while True:
            while before(first, pivot):
                first += 1
            last -= 1
            while before(pivot, last):
                last -= 1
            if first >= last:
                return first
            swap(first, last)
            first += 1

    first, last = 0, len(values)
    while last - first > 3:
        move_median_of_three_to(first, first + 1, first + (last - first) // 2, last - 1)
        cut = partition(first + 1, last, first)
        first, last = (cut, last) if cut <= k - 1 else (first, cut)
    rest = item[first:last]
    item[first:last] = rest[np.argsort(-values[rest], kind="stable")]
    return item[:k]
