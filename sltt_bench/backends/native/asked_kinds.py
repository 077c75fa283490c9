"""Whether a function asks what a value is, not what is in it: by `isinstance`, by `type`, or by comparing identities.

A value of a trace is no tensor, and cannot pass for one everywhere: torch asks too, in C, in the name of the function that
called it, and takes what says yes for memory of its own. So a question is read where it is written. What nobody reads here:
`isinstance` under another name, `callable` and `repr` of a value.
"""

import ast
import builtins
import inspect
import linecache
import textwrap
from abc import ABCMeta
from collections.abc import Iterator
from dis import get_instructions, opname
from functools import cache
from itertools import islice
from types import CodeType, FrameType, ModuleType, UnionType
from typing import Any

from torch import Tensor

METACLASSES = (type, ABCMeta, type(Tensor))
"""Of classes that `isinstance` compares with what a value says it is, and no more."""


def is_asked_for_kind(frame: FrameType | None) -> bool | None:
    """Whether the function that runs in `frame` asks for the class of a value; None if it does, and may not be told.

    Of the standard library's abstract classes it is who asks them.
    """
    while frame is not None and _module(frame) in ("abc", "_py_abc"):
        frame = frame.f_back
    if frame is None or _module(frame).split(".")[0] in ("torch", "sltt_bench"):
        return frame is not None and frame.f_code.co_name == "is_tensor" and is_asked_by(frame.f_back)
    code = frame.f_code
    if _module(frame) == "typing" or opname[code.co_code[frame.f_lasti]] == "MATCH_CLASS":
        return None
    if not {"isinstance", "__class__"}.intersection(code.co_names):
        return False
    match _expression(frame):
        case ast.Call(func=ast.Name(id="isinstance"), args=[_, kinds]):
            return True if all(type(kind) in METACLASSES for kind in _kinds(kinds, frame)) else None
        case ast.Attribute(attr="__class__"):
            return True
        case None:
            return None
    return False


def is_asked_by(frame: FrameType | None) -> bool:
    """Whether the function is somebody's own: neither torch's nor this project's."""
    return frame is not None and _module(frame).split(".")[0] not in ("torch", "sltt_bench")


@cache
def asks_for_types(code: CodeType) -> bool:
    """Whether a function takes the `type` of anything but itself, or asks whether it is traced."""
    if {"is_fx_tracing", "is_fx_symbolic_tracing"}.intersection(code.co_names):
        return True
    if "type" not in code.co_names:
        return False
    if not (lines := _source(code)):
        return True
    try:
        source = ast.parse(textwrap.dedent("".join(inspect.getblock(lines[code.co_firstlineno - 1 :]))))
    except SyntaxError:  # a part of a line
        return True
    itself = code.co_varnames[:1]
    of_itself = {
        id(node.func)
        for node in ast.walk(source)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and [arg.id for arg in node.args if isinstance(arg, ast.Name)] == list(itself)
    }
    named = (node for node in ast.walk(source) if isinstance(node, ast.Name) and node.id == "type")
    return any(id(node) not in of_itself for node in named)


@cache
def compares_identities(code: CodeType) -> bool:
    """Whether `is` or `is not` stands in a function."""
    names = {instruction.opname for instruction in get_instructions(code)}
    return any(name == "IS_OP" or name.endswith("NONE") for name in names)


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__"))


def _expression(frame: FrameType) -> ast.expr | None:
    """What is being computed there; None if the source is not to be had."""
    first, last, begin, end = next(islice(frame.f_code.co_positions(), frame.f_lasti // 2, None))
    lines = _source(frame.f_code)
    if first is None or last is None or begin is None or end is None or not lines:
        return None
    encoded = [line.encode() for line in lines[first - 1 : last]]
    encoded[-1] = encoded[-1][:end]
    encoded[0] = encoded[0][begin:]
    return ast.parse(b"(" + b"".join(encoded) + b")", mode="eval").body


@cache
def _source(code: CodeType) -> list[str]:
    """The lines of the file that a function is from, if that is still what was compiled; else none."""
    lines = linecache.getlines(code.co_filename)
    try:
        compiled = compile("".join(lines), code.co_filename, "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        return []
    return lines if code in _functions(compiled) else []


def _functions(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _functions(constant)


def _kinds(expression: ast.expr, frame: FrameType) -> Iterator[Any]:
    """The classes that an expression names; None in the place of one that is not known without computing."""
    value: Any = None
    match expression:
        case ast.Tuple(elts=parts):
            for part in parts:
                yield from _kinds(part, frame)
            return
        case ast.BinOp(left=left, right=right):
            yield from (*_kinds(left, frame), *_kinds(right, frame))
            return
        case ast.Name(id=name):
            value = next(
                (n[name] for n in (frame.f_locals, frame.f_globals, vars(builtins)) if name in n), None
            )
        case ast.Attribute(value=ast.Name(id=owner), attr=name):
            module = frame.f_globals.get(owner)
            value = vars(module).get(name) if isinstance(module, ModuleType) else None
    yield from _flat(value)


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, UnionType):
        value = value.__args__
    if isinstance(value, tuple):
        for part in value:
            yield from _flat(part)
    else:
        yield value
