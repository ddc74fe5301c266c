"""Counter-based noise: the published vectors, the open interval, independence from the batch, and statistics.

The statistical tests are seeded. For a new seed each fails for a right generator with a probability below 1e-6 (chi-square) or
6e-7 (correlations, five standard deviations); there are about 40 of them.
"""

import itertools
import math

import pytest
import torch
from scipy import stats

from gradest.errors import InvalidInput
from gradest.kernels import portable
from gradest.kernels.reference.noise import uniform_from_words
from gradest.random import MAX_SEED, VERSION, Key, fresh_seed, philox4x32

ONES = 0xFFFFFFFF
VECTORS = [  # of Salmon et al.'s Random123: rounds, key, counter, words
    (7, (0, 0), (0, 0, 0, 0), (0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48)),
    (7, (ONES,) * 2, (ONES,) * 4, (0x5207DDC2, 0x45165E59, 0x4D8EE751, 0x8C52F662)),
    (
        *(7, (0xA4093822, 0x299F31D0), (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)),
        (0x4DFCCABA, 0x190A87F0, 0xC47362BA, 0xB6B5242A),
    ),
    (10, (0, 0), (0, 0, 0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (10, (ONES,) * 2, (ONES,) * 4, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        *(10, (0xA4093822, 0x299F31D0), (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("rounds", "key", "counter", "words"), VECTORS)
def test_known_answers(rounds, key, counter, words):
    assert philox4x32(key, counter, rounds) == words
    for dtype in (torch.int64, torch.uint32):
        k0, k1, *given = (torch.tensor([word, 0], dtype=dtype) for word in (*key, *counter))
        found = philox4x32((k0, k1), tuple(given), rounds)
        assert tuple(int(word[0]) for word in found) == words
        assert found[0].dtype == torch.int64
        assert tuple(int(word[1]) for word in found) == next(v[3] for v in VECTORS if v[0] == rounds)
    mixed = philox4x32(key, (torch.tensor(counter[0]), *counter[1:]), rounds)
    assert tuple(map(int, mixed)) == words
    assert philox4x32(key, counter) == philox4x32(key, counter, 7)


def word_of(seed, row, stream, unit, draw):
    """The word from which a number's first bits come, and the one from which the last bits of a float64 number come."""
    key, place = (seed & ONES, seed >> 32), unit % 4
    return tuple(philox4x32(key, (unit // 4 + first, draw, row, stream))[place] for first in (0, 1 << 31))


# What version 2 of the noise gives for a seed and a stream, at row 3, unit 6, draw 1. These numbers never change.
PROMISED = {
    (0, 0): (0.9996020197868347, 0.99960197276413),
    (7, 3): (0.4450787901878357, 0.4450787758567215),
    (MAX_SEED - 1, (1 << 32) - 2): (0.03584033250808716, 0.03584037631851589),
}


@pytest.mark.parametrize(("seed", "stream"), PROMISED)
def test_the_numbers_of_a_version_never_change(seed, stream):
    assert VERSION == 2
    for dtype, promised in zip((torch.float32, torch.float64), PROMISED[seed, stream], strict=True):
        assert float(Key(seed, stream=stream).uniform((4,), (7,), 2, dtype=dtype)[1, 3, 6]) == promised


@pytest.mark.parametrize("seed", [7, (1 << 40) + 17, MAX_SEED - 1])
def test_a_number_is_made_of_the_words_of_its_seed_row_stream_unit_and_draw(seed):
    for dtype in (torch.float32, torch.float64):
        drawn = Key(seed, stream=3).uniform((5,), (9,), 2, dtype=dtype)
        for draw, row, unit in itertools.product(range(2), range(5), range(9)):
            x, y = word_of(seed, row, 3, unit, draw)
            number = ((x >> 8) | 1) * 2.0**-24 if dtype == torch.float32 else (((x << 21) | (y >> 11)) | 1) * 2.0**-53
            assert float(drawn[draw, row, unit]) == number


@pytest.mark.parametrize("seed", [7, (1 << 40) + 17])
def test_a_repetition_has_53_bits_of_its_own_for_a_seed(seed):
    """Of Philox(seed, (repetition, 0, 0, 2^32 - 1)), a counter that no row with a stream has."""
    for repetition in (0, 1, 1 << 31):
        x0, x1, *_ = philox4x32((seed & ONES, seed >> 32), (repetition, 0, 0, ONES))
        assert Key(seed).fold_in(repetition).seed == (x0 << 21) | (x1 >> 11)


def test_words_must_be_integers():
    with pytest.raises(InvalidInput, match="integers"):
        philox4x32((torch.zeros(1), 0), (0, 0, 0, 0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_open_interval_and_symmetry(dtype):
    words = torch.tensor([0, ONES, 1 << 30, 1 << 31])
    u = uniform_from_words(words, words if dtype == torch.float64 else None)
    assert u.dtype == dtype
    assert float(u.min()) > 0
    assert float(u.max()) < 1
    assert float(u[0]) == 1 - float(u[1])  # the smallest and the largest mirror each other exactly
    drawn = Key(0).uniform((1000,), (100,), 10, dtype=dtype)
    assert torch.equal(1 - (1 - drawn), drawn)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_normal_noise_has_the_bits_of_the_quantiles(backend, dtype, monkeypatch):
    """With or without a kernel, for pre-activations that are not finite or require a gradient, too."""
    a = torch.full((3, 2, 5), -math.inf, dtype=dtype, requires_grad=True)
    key = Key(7, rows=torch.tensor([4, 0, 9]), stream=2)
    monkeypatch.setenv("GRADEST_KERNELS", "reference")
    wanted = portable.ndtri(key.uniform_like(a, 4, 2))
    monkeypatch.setenv("GRADEST_KERNELS", backend)
    z = key.normal_like(a, 4, 2)
    assert not z.requires_grad
    assert z.dtype == wanted.dtype == torch.promote_types(dtype, torch.float32)
    assert torch.equal(z, wanted)


def test_half_precision_noise_is_float32():
    assert Key(0).uniform((), (3,), dtype=torch.bfloat16).dtype == torch.float32


def test_shapes():
    assert Key(1).uniform((), (3,), 2).shape == (2, 3)
    assert Key(1).uniform((4, 5), (3, 2), 2).shape == (2, 4, 5, 3, 2)
    assert Key(1).uniform((0,), (3,), 2).shape == (2, 0, 3)
    assert Key(1).uniform((4,), (3,), 0).shape == (0, 4, 3)
    assert Key(1).uniform_like(torch.zeros(4, 3), 2).shape == (2, 4, 3)


def test_a_row_does_not_depend_on_its_batch():
    whole = Key(7).uniform((1000,), (5,), 3)
    alone = Key(7, rows=torch.tensor([500])).uniform((1,), (5,), 3)
    assert torch.equal(alone[:, 0], whole[:, 500])
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Key(7, rows=order).uniform((1000,), (5,), 3), whole[:, order])
    assert torch.equal(Key(7).uniform((10, 100), (5,), 3).reshape(3, 1000, 5), whole)
    assert torch.equal(Key(7).uniform((1000,), (5,), 2), whole[:2])  # nor do draws on how many there are
    assert torch.equal(Key(7).uniform((1000,), (4,), 3), whole[..., :4])  # nor units
    both = Key(torch.tensor([7, 8]), rows=torch.tensor([3, 4])).uniform((2,), (5,), 3)  # nor requests on each other
    assert torch.equal(both[:, 0], whole[:, 3])
    assert torch.equal(both[:, 1], Key(8).uniform((1000,), (5,), 3)[:, 4])


def test_folding_in_a_tensor_is_folding_in_each():
    repeated = Key(7, rows=torch.arange(6)).fold_in(torch.arange(4)[:, None]).uniform((4, 6), (2,), 3)
    for repetition in range(4):
        assert torch.equal(repeated[:, repetition], Key(7).fold_in(repetition).uniform((6,), (2,), 3))


def test_seeds():
    torch.manual_seed(5)
    first = fresh_seed()
    torch.manual_seed(5)
    assert fresh_seed() == first
    torch.manual_seed(5)
    assert torch.randint(0, MAX_SEED, ()).item() == first
    assert 0 <= first < MAX_SEED
    assert not torch.equal(Key(1).uniform((), (8,)), Key(1 + (1 << 32)).uniform((), (8,)))  # the upper word counts
    for bad in (-1, MAX_SEED, 1.5, "7", True, None):
        with pytest.raises(InvalidInput, match="seed"):
            Key(bad)
    for stream in (-1, 1.0, True, ONES):
        with pytest.raises(InvalidInput, match="stream"):
            Key(1, stream=stream)
        with pytest.raises(InvalidInput, match="stream"):
            Key(1).with_stream(stream)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.uint32, torch.int64, torch.uint64])
def test_legal_seeds_and_rows_mean_the_same_in_every_dtype(dtype):
    expected = Key(5).uniform((8,), (3,))
    rows = torch.arange(8, dtype=torch.int64).to(dtype)
    assert torch.equal(Key(torch.tensor(5, dtype=dtype), rows).uniform((8,), (3,)), expected)
    assert torch.equal(Key(7).fold_in(torch.tensor(5, dtype=dtype)).seed, torch.tensor(Key(7).fold_in(5).seed))


@pytest.mark.parametrize("row", [ONES, 1 << 31, 5])
def test_the_largest_rows_have_noise_of_their_own(row):
    x, _ = word_of(7, row, 0, 0, 0)
    assert float(Key(7, torch.tensor([row])).uniform((1,), (1,))) == ((x >> 8) | 1) * 2.0**-24


@pytest.mark.parametrize(
    "bad",
    [
        *(torch.tensor([0, number]) for number in (-1, 1 << 32, (1 << 32) + 1, 1 << 62, -(1 << 62))),
        torch.tensor([-1], dtype=torch.int32),
        torch.tensor([3, (1 << 64) - 1], dtype=torch.uint64),
        torch.tensor([0.5]),
        torch.tensor([1.0]),
        torch.tensor([True]),
        torch.tensor([1j]),
    ],
    ids=str,
)
def test_numbers_that_would_have_the_noise_of_others_are_refused(bad):
    """They were taken modulo 2**32, so that row 2**32 had the noise of row 0, and row -1 that of row 2**32 - 1."""
    with pytest.raises(InvalidInput, match="row"):
        Key(1, bad)
    with pytest.raises(InvalidInput, match="data"):
        Key(1).fold_in(bad)
    if bad.dtype != torch.int32:  # there it is a bit pattern
        with pytest.raises(InvalidInput, match="philox4x32"):
            philox4x32((bad, 0), (0, 0, 0, 0))


def test_other_numbers_that_are_no_words_are_refused():
    for number in (-1, 1 << 32, 1.5, True, None, "3"):
        with pytest.raises(InvalidInput, match="data"):
            Key(1).fold_in(number)
        with pytest.raises(InvalidInput, match="word"):
            philox4x32((0, number), (0, 0, 0, 0))
    for rounds in (0, -1, 1.5, True, "7"):
        with pytest.raises(InvalidInput, match="rounds"):
            philox4x32((0, 0), (0, 0, 0, 0), rounds)
    for seed in (-1, 1 << 53, (1 << 53) + 1, 1 << 62):
        with pytest.raises(InvalidInput, match=f"seed.*{seed}"):
            Key(torch.tensor([1, seed]))
    for rows in ([0, 1], 3, 1.5):
        with pytest.raises(InvalidInput, match="rows must be a tensor of integers"):
            Key(1, rows)
    with pytest.raises(InvalidInput, match=r"broadcast to the batch \[2\]"):
        Key(1, torch.arange(3)).uniform((2,), (2,))
    assert Key(1, torch.tensor([], dtype=torch.int64)).uniform((0,), (2,)).shape == (1, 0, 2)


def test_more_numbers_than_a_word_counts_are_refused():
    for batch, event, draws in [(((1 << 32) + 1,), (0,), 1), ((0,), ((1 << 32) + 1,), 1), ((0,), (1,), (1 << 32) + 1)]:
        with pytest.raises(InvalidInput, match=r"2\*\*32 rows, units and draws"):
            Key(1).uniform(batch, event, draws)


def test_seeds_inside_vmap_are_checked_too():
    def draw(seed):
        return Key(seed).uniform((), (2,))[0]

    seeds = torch.tensor([3, 4])
    drawn = torch.func.vmap(draw)(seeds)
    assert torch.equal(drawn, torch.stack([Key(3).uniform((), (2,))[0], Key(4).uniform((), (2,))[0]]))
    with pytest.raises(InvalidInput, match="-3"):
        torch.func.vmap(draw)(-seeds)


def test_a_tensor_is_looked_at_once(monkeypatch):
    """Where the caller hands it over: a key that is derived from a checked one is not checked again."""
    key = Key(torch.tensor([1, 2]), torch.tensor([0, 1]))
    monkeypatch.setattr(torch.Tensor, "any", lambda *_: pytest.fail("the values are read again"))
    key.with_stream(3).uniform((2,), (3,))
    assert isinstance(key.fold_in(1).with_stream(3), Key)


def chi_square_p(u, bins):
    counts = torch.histc(u.double(), bins, 0, 1)
    return stats.chisquare(counts.numpy()).pvalue


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("axis", ["rows", "units", "draws", "streams", "seeds", "repetitions"])
def test_uniform_along_every_axis(axis, dtype):
    n = 1 << 18
    u = along(axis, n, dtype)
    assert 5e-7 < chi_square_p(u, 1024) < 1 - 5e-7
    lower = (u * 1024) % 1  # the bits below those
    assert 5e-7 < chi_square_p(lower, 1024) < 1 - 5e-7


@pytest.mark.parametrize("axis", ["rows", "units", "draws", "streams", "seeds", "repetitions"])
def test_neighbours_are_independent_along_every_axis(axis):
    u = along(axis, 1 << 18)
    for lag in (1, 2, 32, 1024):
        assert abs(correlation(u[:-lag], u[lag:])) < 5
    # and jointly uniform, which no correlation shows: 32 x 32 cells of neighbouring pairs
    pairs = (u[::2] * 32).long() * 32 + (u[1::2] * 32).long()
    assert 5e-7 < stats.chisquare(torch.bincount(pairs, minlength=1024).numpy()).pvalue < 1 - 5e-7


def test_axes_are_independent_of_each_other():
    """The same position in other rows, draws, streams and seeds."""
    n = 1 << 16
    columns = [
        Key(3).uniform((), (n,))[0],
        Key(3, rows=torch.tensor(1)).uniform((), (n,))[0],
        Key(3).uniform((), (n,), 2)[1],
        Key(3).with_stream(1).uniform((), (n,))[0],
        Key(4).uniform((), (n,))[0],
        Key(3).fold_in(0).uniform((), (n,))[0],
        Key(3).uniform((n,), (1,))[0, :, 0],
    ]
    for one, two in itertools.combinations(columns, 2):
        assert abs(correlation(one, two)) < 5
        assert not torch.equal(one, two)


def along(axis, n, dtype=torch.float32):
    """n numbers that differ in one coordinate alone."""
    counting = torch.arange(n)
    if axis == "rows":
        return Key(11).uniform((n,), (1,), dtype=dtype).flatten()
    if axis == "units":
        return Key(11).uniform((), (n,), dtype=dtype).flatten()
    if axis == "draws":
        return Key(11).uniform((), (1,), n, dtype=dtype).flatten()
    if axis == "streams":
        small = n >> 8  # streams are python integers, one key each
        return torch.cat([Key(11).with_stream(i).uniform((), (256,), dtype=dtype)[0] for i in range(small)])
    if axis == "seeds":
        return Key(counting, rows=torch.zeros(n, dtype=torch.int64)).uniform((n,), (1,), dtype=dtype).flatten()
    return Key(11, rows=torch.zeros(1, dtype=torch.int64)).fold_in(counting).uniform((n,), (1,), dtype=dtype).flatten()


def correlation(x, y):
    """Pearson's r in standard deviations of what independence gives."""
    x, y = x.double() - 0.5, y.double() - 0.5
    return float((x * y).mean() * 12) * math.sqrt(x.numel())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "key",
    [Key(7), Key(2**52 + 3, stream=2), Key(7, rows=torch.tensor([5, 2**31, 3])), Key(torch.tensor([1, 2**40, 3]))],
    ids=["seed", "stream", "rows", "seeds"],
)
def test_row_words_give_a_kernel_of_one_s_own_the_bits_of_uniform(key, dtype):
    """By the arithmetic of the docstring, from the public function alone."""
    word0, word1, row = (word[:, None] for word in key.row_words((3,)))
    unit, draw = torch.arange(5), torch.arange(2)[:, None, None]

    def words(first):
        four = torch.broadcast_tensors(*philox4x32((word0, word1), (unit // 4 + first, draw, row, key.stream)))
        return torch.stack(four).gather(0, (unit % 4).expand(1, 2, 3, 5))[0]

    if dtype == torch.float32:
        found = ((words(0) >> 8) | 1).to(dtype) * 2.0**-24
    else:
        found = (((words(0) << 21) | (words(1 << 31) >> 11)) | 1).to(dtype) * 2.0**-53
    assert torch.equal(found, key.uniform((3,), (5,), 2, dtype=dtype))
