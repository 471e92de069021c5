"""Masking of quadratic programs: ``x = N R y + x0`` [masking 1]. Masking is not encryption.

``N`` spans the null space of the equality rows, ``R`` is a random invertible matrix, ``x0`` a
random solution of the equality rows. A worker gets ``H', c', G', h'`` and never ``N R`` or ``x0``.
What it learns all the same is measured by :mod:`veilgrid.qp.leak`: for any choice of the three,
``h' - G'y = h - Gx``, so every row still publishes its slack [docs/threat-model.md 4].
"""

import hashlib
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from scipy import linalg, sparse, special

from veilgrid.errors import invariant
from veilgrid.qp.problem import Floats
from veilgrid.secret import Randomness, Secret

CONDITION = 10.0
"""Condition number of ``R``; its singular values are spread evenly in their logarithm."""

QUANTUM = 1e-9
"""Solutions are whole multiples of it before they are hashed [design 6]."""

SCALE_SPREAD = 10.0
"""Random row scales lie between its inverse and itself."""


@dataclass(frozen=True, kw_only=True)
class StandardForm:
    """``min x'Hx/2 + c.x`` subject to ``A x = b``, ``G x <= h``.

    Attributes
    ----------
    quadratic : (variable, variable), symmetric, positive semidefinite
    linear : (variable,)
    equal : (equality, variable); equal_to : (equality,)
    matrix : (row, variable); bound : (row,), finite
    """

    quadratic: sparse.csr_matrix = field(repr=False)
    linear: Floats = field(repr=False)
    equal: sparse.csr_matrix = field(repr=False)
    equal_to: Floats = field(repr=False)
    matrix: sparse.csr_matrix = field(repr=False)
    bound: Floats = field(repr=False)

    def objective(self, x: Floats) -> float:
        """Return the cost of x."""
        return float(0.5 * x @ (self.quadratic @ x) + self.linear @ x)


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskOptions:
    """What is done beyond the source paper's map.

    Attributes
    ----------
    has_row_scaling
        Multiply each row by its own random positive number.
    has_permutation
        Shuffle the rows.
    decoy_share : in [0, 1]
        Redundant rows that are mixed in, as a share of the true ones.
    condition : >= 1
        Condition number of ``R``.
    is_fresh_each_iteration
        Draw a new mask for each iteration instead of one a day; a worker can then keep no factor.
    """

    has_row_scaling: bool = False
    has_permutation: bool = False
    decoy_share: float = 0.0
    condition: float = CONDITION
    is_fresh_each_iteration: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether rows stay as the source paper has them."""
        return not (self.has_row_scaling or self.has_permutation or self.decoy_share > 0.0)


EVERY_OPTION = MaskOptions(has_row_scaling=True, has_permutation=True, decoy_share=0.4)


@dataclass(frozen=True, kw_only=True)
class MaskedProblem:
    """``min y'H'y/2 + c'.y`` subject to ``G'y <= h'``: what workers and validators hold.

    Attributes
    ----------
    quadratic : (masked, masked)
    linear : (masked,)
    matrix : (row, masked)
    bound : (row,)
    """

    quadratic: Floats = field(repr=False)
    linear: Floats = field(repr=False)
    matrix: Floats = field(repr=False)
    bound: Floats = field(repr=False)

    def __post_init__(self) -> None:
        rows, width = self.matrix.shape
        invariant(self.quadratic.shape == (width, width), "H' is square over the variables")
        invariant(self.linear.shape == (width,), "one linear cost for each variable")
        invariant(self.bound.shape == (rows,), "one bound for each row")

    def objective(self, y: Floats) -> float:
        """Return the masked cost of y: the true one but for a constant that the key knows."""
        return float(0.5 * y @ (self.quadratic @ y) + self.linear @ y)

    @cached_property
    def lengths(self) -> Floats:
        """Euclidean lengths of the rows of G', (row,)."""
        return np.asarray(np.sqrt(np.einsum("ij,ij->i", self.matrix, self.matrix)))

    @cached_property
    def octets(self) -> bytes:
        """H', G', h' as they are stored beside the ledger, little-endian doubles."""
        return b"".join(_octets(part) for part in (self.quadratic, self.matrix, self.bound))

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of shape and :attr:`octets`: what stays the same from iteration to iteration."""
        shape = b"%d %d " % self.matrix.shape
        return hashlib.sha256(b"masked problem 1 " + shape + self.octets).digest()


def _octets(values: Floats) -> bytes:
    return np.ascontiguousarray(values, dtype="<f8").tobytes()


def linear_digest(problem: bytes, linear: Floats) -> bytes:
    """Return the digest of one iteration's task: the problem's digest and its c'."""
    return hashlib.sha256(b"masked task 1 " + problem + _octets(linear)).digest()


@dataclass(frozen=True, kw_only=True)
class RecoveryRows:
    """The rows of ``N R`` and ``x0`` for some variables only, e.g. those that others must know.

    Attributes
    ----------
    matrix : (chosen variable, masked)
    offset : (chosen variable,)
    """

    matrix: Floats = field(repr=False)
    offset: Floats = field(repr=False)

    def recover(self, y: Floats) -> Floats:
        """Return the chosen variables of a masked solution, (chosen variable,)."""
        return np.asarray(self.matrix @ y + self.offset)

    @property
    def digest(self) -> bytes:
        """SHA-256, by which rows are registered."""
        return hashlib.sha256(
            b"recovery rows 1 " + _octets(self.matrix) + _octets(self.offset)
        ).digest()


class Mask:
    """The key of one masked problem: stays with the site's edge device.

    Parameters
    ----------
    problem
        Its equality rows and bounds fix the key's shape.
    basis : (variable, masked)
        ``N R``.
    origin : (variable,)
        ``x0``.
    rows
        How the published rows follow from the true ones: (published row, true row), non-negative.
    margin : (published row,), >= 0
        Added to decoys' bounds.
    """

    def __init__(
        self,
        problem: StandardForm,
        basis: Floats,
        origin: Floats,
        rows: sparse.csr_matrix,
        margin: Floats,
    ) -> None:
        self._basis, self._origin = Secret(basis), Secret(origin)
        self._problem, self._rows, self._margin = problem, rows, margin

    @property
    def width(self) -> int:
        """Number of masked variables."""
        return int(self._basis.reveal_to("own edge device").shape[1])

    def masked(self) -> MaskedProblem:
        """Return H', c', G', h'."""
        basis, origin = self._open()
        form = self._problem
        published = self._rows @ form.matrix
        return MaskedProblem(
            quadratic=self.quadratic(form.quadratic),
            linear=self.linear(form.linear),
            matrix=np.asarray(published @ basis),
            bound=np.asarray(self._rows @ form.bound + self._margin - published @ origin),
        )

    def quadratic(self, quadratic: sparse.csr_matrix) -> Floats:
        """Return the masked H' of another quadratic cost under the same key."""
        basis, _ = self._open()
        found = basis.T @ (quadratic @ basis)
        return np.asarray((found + found.T) / 2.0)

    def linear(self, linear: Floats, quadratic: sparse.csr_matrix | None = None) -> Floats:
        """Return one iteration's c', (masked,), of a linear cost (variable,)."""
        basis, origin = self._open()
        own = self._problem.quadratic if quadratic is None else quadratic
        return np.asarray(basis.T @ (linear + own @ origin))

    def recover(self, y: Floats) -> Floats:
        """Return the true solution, (variable,)."""
        basis, origin = self._open()
        return np.asarray(basis @ y + origin)

    def rows_for(self, variables: Floats | list[int] | slice) -> RecoveryRows:
        """Return what lets others recover some variables and nothing else."""
        basis, origin = self._open()
        return RecoveryRows(matrix=basis[variables].copy(), offset=origin[variables].copy())

    def true_rows(self) -> dict[int, int]:
        """Return for each published row that is no decoy the true row behind it; for audits."""
        rows = self._rows
        ends = rows.indptr
        return {
            row: int(rows.indices[ends[row]])
            for row in range(rows.shape[0])
            if ends[row + 1] - ends[row] == 1
        }

    def _open(self) -> tuple[Floats, Floats]:
        keeper = "own edge device"
        return self._basis.reveal_to(keeper), self._origin.reveal_to(keeper)


def null_space(equal: sparse.csr_matrix) -> tuple[Floats, Floats]:
    """Return an orthonormal basis of ``A x = 0``, (variable, free), and of A's row space."""
    rows, width = equal.shape
    if rows == 0:
        return np.eye(width), np.zeros((width, 0))
    full, upper, _ = linalg.qr(equal.T.toarray(), pivoting=True)
    size = np.abs(np.diag(upper))
    rank = int(np.sum(size > 1e-11 * size[0])) if len(size) and size[0] > 0.0 else 0
    return full[:, rank:], full[:, :rank]


def draw_mask(
    problem: StandardForm, randomness: Randomness, options: MaskOptions = MaskOptions()
) -> Mask:
    """Draw a fresh key for a problem.

    Parameters
    ----------
    problem
        What will be masked; only its shape, its equality rows and the size of its bounds matter.
    randomness
        Where the key comes from.
    options
        What is done beyond the source paper's map.
    """
    free, fixed = null_space(problem.equal)
    width = free.shape[1]
    basis = free @ _invertible(width, options.condition, randomness)
    # The least-norm solution lies in the row space, and the equations are few within it.
    within = problem.equal @ fixed
    short = (
        linalg.lstsq(within, problem.equal_to, lapack_driver="gelsy")[0]
        if width < len(free)
        else np.zeros(0)
    )
    origin = fixed @ short
    size = float(np.sqrt(np.mean(problem.bound**2))) if len(problem.bound) else 1.0
    origin = origin + free @ (_normal(randomness, (width,)) * max(size, 1e-6))
    rows, margin = _published_rows(problem, randomness, options)
    return Mask(problem, basis, origin, rows, margin)


def _uniform(randomness: Randomness, shape: tuple[int, ...]) -> Floats:
    count = int(np.prod(shape))
    drawn = np.frombuffer(randomness.octets(8 * count), dtype="<u8")
    return np.asarray(((drawn >> np.uint64(11)) + 0.5) * 2.0**-53).reshape(shape)


def _normal(randomness: Randomness, shape: tuple[int, ...]) -> Floats:
    return np.asarray(special.ndtri(_uniform(randomness, shape)))


def _invertible(width: int, condition: float, randomness: Randomness) -> Floats:
    """Draw R with singular values from 1/sqrt(condition) to sqrt(condition)."""
    left, _ = np.linalg.qr(_normal(randomness, (width, width)))
    right, _ = np.linalg.qr(_normal(randomness, (width, width)))
    sizes = condition ** (np.linspace(-0.5, 0.5, width) if width > 1 else np.zeros(width))
    return np.asarray((left * sizes) @ right)


def _published_rows(
    problem: StandardForm, randomness: Randomness, options: MaskOptions
) -> tuple[sparse.csr_matrix, Floats]:
    """Return how published rows follow from true ones, and the margins of decoys.

    A decoy is a random positive mixture of true rows with a margin on top: it never binds, so the
    solution stays what it was. Decoys come in opposite pairs, as bounds do.
    """
    count = problem.matrix.shape[0]
    rows, margin = sparse.identity(count, format="csr"), np.zeros(count)
    decoys = 2 * round(options.decoy_share * count / 2.0)
    if decoys and count >= 2:
        mixture, slack = _decoys(problem, decoys // 2, randomness)
        rows = sparse.vstack([rows, mixture], format="csr")
        margin = np.concatenate([margin, slack])
    total = rows.shape[0]
    if options.has_row_scaling:
        spread = SCALE_SPREAD ** (2.0 * _uniform(randomness, (total,)) - 1.0)
        rows, margin = sparse.diags(spread) @ rows, spread * margin
    if options.has_permutation:
        order = np.argsort(_uniform(randomness, (total,)), kind="stable")
        rows, margin = rows.tocsr()[order], margin[order]
    return sparse.csr_matrix(rows), margin


def _decoys(
    problem: StandardForm, pairs: int, randomness: Randomness
) -> tuple[sparse.csr_matrix, Floats]:
    """Mix true rows; where a row has an opposite, the decoy gets the opposite mixture too."""
    opposite = opposite_rows(problem.matrix)
    paired = np.flatnonzero(opposite >= 0)
    count = problem.matrix.shape[0]
    pool = paired if len(paired) else np.arange(count)
    members = (_uniform(randomness, (pairs, 3)) * len(pool)).astype(np.int64)
    weight = 0.2 + _uniform(randomness, (pairs, 3))
    index = np.repeat(np.arange(pairs), 3)
    one = sparse.csr_matrix((weight.ravel(), (index, pool[members].ravel())), (pairs, count))
    other = pool if not len(paired) else opposite[pool]
    two = sparse.csr_matrix((weight.ravel(), (index, other[members].ravel())), (pairs, count))
    both = sparse.csr_matrix(sparse.vstack([one, two]))
    size = float(np.median(np.abs(problem.bound))) or 1.0
    return both, size * (0.05 + 0.3 * _uniform(randomness, (2 * pairs,)))


def opposite_rows(matrix: sparse.csr_matrix) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    """Return for each row the index of the row that is its negative, -1 where there is none."""
    rows = sparse.csr_matrix(matrix)
    rows.sort_indices()
    seen: dict[tuple[bytes, bytes], int] = {}
    found = np.full(rows.shape[0], -1, dtype=np.int64)
    for row in range(rows.shape[0]):
        part = slice(rows.indptr[row], rows.indptr[row + 1])
        where, values = rows.indices[part].tobytes(), rows.data[part]
        partner = seen.pop((where, (-values).tobytes()), None)
        if partner is None:
            seen[where, values.tobytes()] = row
        else:
            found[row], found[partner] = partner, row
    return found


def opposite_unit_rows(
    unit: Floats, tolerance: float = 1e-8
) -> (
    "tuple[np.ndarray[tuple[int], np.dtype[np.int64]], np.ndarray[tuple[int], np.dtype[np.int64]]]"
):
    """Return pairs of dense rows of length one that are each other's negative.

    Parameters
    ----------
    unit : (row, column)
        Each of length one.
    tolerance : > 0
        Length of the sum of two rows up to which they count as opposite.

    Returns
    -------
    (pair,), (pair,)
        The lower and the higher index of each pair; no row is in two pairs.
    """
    score = unit @ np.cos(np.arange(unit.shape[1]) * 1.37 + 0.3)
    order = np.argsort(np.abs(score), kind="stable")
    near = score[order]
    first, second, free = [], [], np.ones(len(unit), dtype=bool)
    for place, row in enumerate(order):
        if not free[row]:
            continue
        for ahead in range(place + 1, min(place + 12, len(order))):
            other = order[ahead]
            if abs(abs(near[ahead]) - abs(near[place])) > 1e-7:
                break
            if free[other] and np.linalg.norm(unit[row] + unit[other]) <= tolerance:
                first.append(min(int(row), int(other)))
                second.append(max(int(row), int(other)))
                free[[row, other]] = False
                break
    return np.array(first, dtype=np.int64), np.array(second, dtype=np.int64)
