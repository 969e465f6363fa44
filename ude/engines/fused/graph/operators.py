"""The pointwise functions of a fused program: what each torch operator computes, and how C says it.

`{p}` stands for the prefix of the vector math (scalars, lanes or neighbors in an array, see c/vector_math.h).
Comparisons give numbers, 1 or 0, so that a program has one type; C compilers fold the detour.
"""

from __future__ import annotations

#: name -> C expression in the arguments {0}, {1}, {2}.
FUNCTIONS: dict[str, str] = {
    "add": "({0} + {1})",
    "sub": "({0} - {1})",
    "mul": "({0} * {1})",
    "div": "({0} / {1})",
    "neg": "(-{0})",
    "square": "({0} * {0})",
    "cube": "({0} * {0} * {0})",
    "reciprocal": "({p}splat(1) / {0})",
    "where": "{p}select({p}ne({0}, {p}splat(0)), {1}, {2})",
    "not": "({p}splat(1) - {0})",
    "or": "{p}max({0}, {1})",
    "xor": "{p}number({p}ne({0}, {1}))",
    "truth": "{p}number({p}ne({0}, {p}splat(0)))",
    "isnan": "{p}number({p}ne({0}, {0}))",
    "isfinite": "{p}number({p}eq({0} - {0}, {p}splat(0)))",
    "isinf": "{p}number({p}eq({p}abs({0}), {p}splat((real)INFINITY)))",
    "sign": "({p}number({p}gt({0}, {p}splat(0))) - {p}number({p}lt({0}, {p}splat(0))))",
    "relu": "{p}select({p}le({0}, {p}splat(0)), {p}splat(0), {0})",
}
FUNCTIONS |= {name: "{p}number({p}" + name + "({0}, {1}))" for name in ("eq", "ne", "lt", "le", "gt", "ge")}
_ONE = """abs sqrt exp expm1 exp2 log log1p log2 log10 sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh
sigmoid erf erfc floor ceil round trunc lgamma digamma rsqrt"""
_TWO = "fmin fmax copysign pow atan2 hypot fmod remainder"
FUNCTIONS |= {name: "{p}" + name + "({0})" for name in _ONE.split()}
FUNCTIONS |= {name: "{p}" + name + "({0}, {1})" for name in _TWO.split()}
FUNCTIONS |= {"minimum": "{p}min({0}, {1})", "maximum": "{p}max({0}, {1})"}

#: aten overload packet -> name above, where the arguments are those of torch.
_OWN_NAME = f"{_ONE} neg sign relu reciprocal square isnan isfinite isinf"
UNARY = {
    **{name: name for name in _OWN_NAME.split()},
    "logical_not": "not",
    "bitwise_not": "not",
    "sgn": "sign",
}
_BOTH_NAMES = "mul eq ne lt le gt ge minimum maximum fmin fmax copysign atan2 hypot fmod remainder"
BINARY = {
    **{name: name for name in _BOTH_NAMES.split()},
    "logical_and": "mul",
    "logical_or": "or",
    "logical_xor": "xor",
    "bitwise_and": "mul",
    "bitwise_or": "or",
    "bitwise_xor": "xor",
}
