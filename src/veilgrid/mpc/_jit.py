"""Compile kernels, and two wide products that numba does not know by itself."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import llvmlite.binding  # type: ignore[import-untyped]
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

F = TypeVar("F", bound=Callable[..., Any])

HAS_CARRYLESS = bool(llvmlite.binding.get_host_cpu_features().get("pclmul", False))
"""Whether this processor multiplies polynomials over GF(2) in one instruction."""


def compiled(function: F) -> F:
    """Compile a kernel on first use and keep it on disk; it runs without the interpreter lock."""
    return cast(F, njit(cache=True, nogil=True)(function))


def inlined(function: F) -> F:
    """Compile a few lines into every kernel that calls them."""
    return cast(F, njit(cache=True, inline="never", nogil=True)(function))


@intrinsic  # type: ignore[untyped-decorator]
def multiply_wide(typing_context: Any, a: Any, b: Any) -> Any:  # noqa: ARG001
    """Return low and high word of the product of two 64-bit words."""
    pair = types.UniTuple(types.uint64, 2)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        wide, word = ir.IntType(128), ir.IntType(64)
        product = builder.mul(builder.zext(arguments[0], wide), builder.zext(arguments[1], wide))
        low = builder.trunc(product, word)
        high = builder.trunc(builder.lshr(product, ir.Constant(wide, 64)), word)
        return context.make_tuple(builder, signature.return_type, (low, high))

    return pair(types.uint64, types.uint64), generate


@intrinsic  # type: ignore[untyped-decorator]
def _carryless_native(typing_context: Any, a: Any, b: Any) -> Any:  # noqa: ARG001
    pair = types.UniTuple(types.uint64, 2)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word, octet, index = ir.IntType(64), ir.IntType(8), ir.IntType(32)
        lanes = ir.VectorType(word, 2)
        zero = ir.Constant(lanes, [0, 0])
        first, second = ir.Constant(index, 0), ir.Constant(index, 1)
        name = "llvm.x86.pclmulqdq"
        kind = ir.FunctionType(lanes, [lanes, lanes, octet])
        function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name=name)
        factors = [builder.insert_element(zero, factor, first) for factor in arguments]
        product = builder.call(function, [*factors, ir.Constant(octet, 0)])
        low = builder.extract_element(product, first)
        high = builder.extract_element(product, second)
        return context.make_tuple(builder, signature.return_type, (low, high))

    return pair(types.uint64, types.uint64), generate


@compiled
def carryless_portable(a: Any, b: Any) -> Any:
    """Return low and high word of the product over GF(2), bit by bit."""
    zero, one, top = types.uint64(0), types.uint64(1), types.uint64(63)
    low, high = zero, zero
    for index in range(64):
        bit = types.uint64(index)
        chosen = zero - ((b >> bit) & one)
        low ^= (a << bit) & chosen
        # Two shifts, since a shift by 64 is undefined.
        high ^= ((a >> one) >> (top - bit)) & chosen
    return low, high


carryless: Any = _carryless_native if HAS_CARRYLESS else carryless_portable
"""Product of two 64-bit polynomials over GF(2): low word, high word."""
