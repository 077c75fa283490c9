"""Checks in the source of a forward method that a trace shows everything it does.

A trace (torch.fx) shows operations on values. It does not show what a method stores or draws, which
properties of values it reads, whether it behaves differently in evaluation, or in which precision it
computes. So this module lists everything that a method may consist of: calls of layers, of its own methods
and of the tensor functions below, arithmetic, loops over layers, and branches on numbers fixed at
construction. Layers of torch and of this package are known and not read.
"""

import ast
import builtins
import linecache
import math
import operator
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from dis import get_instructions
from functools import cache, lru_cache
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any, NamedTuple, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sltt_bench.neurons import Stateful

KNOWN = ("torch", "sltt_bench")
"""Packages for whose layers a trace shows everything."""

_NAMES = """
    abs adaptive_avg_pool1d adaptive_avg_pool2d adaptive_max_pool2d add addcmul amax amin avg_pool1d avg_pool2d bmm
    cat celu chunk clamp clone concat contiguous conv1d conv2d conv3d conv_transpose2d cos cumsum detach dim div
    double einsum elu exp expand expand_as flatten flip float fold gelu glu group_norm half hardsigmoid hardswish
    hardtanh instance_norm interpolate layer_norm leaky_relu linear log log_softmax logsumexp masked_fill matmul max
    max_pool1d max_pool2d maximum mean min minimum mish mm movedim mul narrow ndimension neg normalize numel ones_like
    pad permute pixel_shuffle pixel_unshuffle pow prod reciprocal relu relu6 repeat repeat_interleave reshape roll
    rsqrt select selu sigmoid sign silu sin size softmax softplus split sqrt square squeeze stack std sub sum swapaxes
    t tanh tile to transpose tril triu true_divide type_as unbind unflatten unfold unsqueeze upsample var view view_as
    where zeros_like
"""
OF_TENSORS = frozenset(_NAMES.split())
"""Functions and methods of tensors that store, draw and read nothing; `name_` is the in-place form."""

METHODS_OF_LAYERS = ("scaled", "items", "values", "keys", "children", "named_children")
"""Methods of known layers that may be called: the scaled step of neurons, and iteration over parts."""
ATTRIBUTES_OF_TENSORS = ("shape", "T", "mT", "ndim", "dtype", "device")

_FUNCTIONS = {
    id(function)
    for name in OF_TENSORS
    for namespace in (torch, F, operator)
    for function in (getattr(namespace, name, None), getattr(namespace, f"{name}_", None))
    if function is not None
}
_BUILTINS = (len, range, zip, enumerate, reversed, tuple, list, sum, min, max)
_NUMBERS = (int, float, complex, str, torch.dtype, torch.device, type(None))

_STATEMENTS = (ast.Expr, ast.Return, ast.Assign, ast.AugAssign, ast.For, ast.If, ast.Pass, ast.Assert)
_EXPRESSIONS = (
    ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.IfExp, ast.Constant, ast.Tuple, ast.List, ast.Subscript, ast.Slice,
    ast.Starred, ast.keyword, ast.ListComp, ast.GeneratorExp, ast.comprehension,
    ast.operator, ast.unaryop, ast.boolop, ast.cmpop, ast.expr_context,
)  # fmt: skip


class NotPlain(Exception):
    """A forward method may do more than a trace of it shows; the message says where."""


_ABSENT = object()


class Fixed(NamedTuple):
    """A number or part on which forward methods depend; the trace contains its current value."""

    owner: nn.Module | dict[str, Any]
    """The layer, or the dictionary of globals, that holds it."""
    name: str
    value: Any

    def has_changed(self) -> bool:
        if isinstance(self.owner, dict):
            return self.owner.get(self.name, _ABSENT) is not self.value
        return getattr(self.owner, self.name, _ABSENT) is not self.value


def read_forward_methods(parts: Iterable[nn.Module]) -> list[Fixed]:
    """Returns what the forward methods of the parts, and their callees, depend on. Raises NotPlain."""
    reader = _Reader()
    for part in parts:
        reader.read_part(part)
    return list(reader.fixed.values())


@dataclass
class _Reader:
    """Collects what has been read so far."""

    fixed: dict[tuple[int, str], Fixed] = field(default_factory=dict)
    read: set[tuple[int, CodeType]] = field(default_factory=set)

    def read_part(self, part: nn.Module) -> None:
        kind = type(part)
        if _is_known(kind):
            return
        if isinstance(part, Stateful):
            raise NotPlain(f"{kind.__name__} carries something from step to step")
        for name in ("__call__", "__getattr__", "__getattribute__"):
            if getattr(kind, name) is not getattr(nn.Module, name):
                raise NotPlain(f"{kind.__name__} has a {name} of its own")
        if "forward" in vars(part):
            raise NotPlain(f"forward of a {kind.__name__} was replaced")
        self.read_function(kind.forward, part)

    def read_function(self, function: Any, part: nn.Module | None = None) -> None:
        """Read a function; `part` is its layer if it is a method. Raises NotPlain."""
        if not isinstance(function, FunctionType):
            raise NotPlain(
                f"it calls {getattr(function, '__name__', function)!s:.60}, which is no plain function"
            )
        if (id(part), function.__code__) not in self.read:
            self.read.add((id(part), function.__code__))
            _Function(self, function, part).read()


@dataclass(frozen=True)
class _Method:
    owner: nn.Module
    function: Any


ANY = "*"
"""Stands for every name, if names are computed."""
_COMPUTED = object()
"""Stands for a result known only at run time: a value of the step, a layer or a number."""


class _Function(ast.NodeVisitor):
    """One function, read for one layer."""

    def __init__(self, reader: _Reader, function: FunctionType, part: nn.Module | None) -> None:
        self._reader, self._function, self._part = reader, function, part
        code = function.__code__
        if (definition := _definition(code)) is None:
            raise NotPlain(f"the source of {function.__qualname__} is not to be had")
        self._definition = definition
        nodes = list(ast.walk(definition))
        arguments = {node.arg for node in nodes if isinstance(node, ast.arg)}
        stored = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
        self._locals = stored | arguments
        self._lists = _lists(nodes) - arguments
        """Locals that are always lists made in this function."""
        self._self = ""
        """The function's name for the layer, usually `self`."""
        if part is not None and code.co_argcount and code.co_varnames[0] not in stored:
            self._self = code.co_varnames[0]

    def read(self) -> None:
        """Raises NotPlain."""
        defaults = (*(self._function.__defaults__ or ()), *(self._function.__kwdefaults__ or {}).values())
        if not all(map(_is_number, defaults)):
            self._refuse(self._definition.args)
        body = self._definition.body
        for part in body if isinstance(body, list) else [body]:
            self.visit(part)

    def _refuse(self, node: ast.AST) -> NoReturn:
        text = ast.unparse(node).partition("\n")[0]
        raise NotPlain(f"`{text:.60}` in {self._function.__qualname__} may do more than a trace shows")

    def generic_visit(self, node: ast.AST) -> None:
        if not isinstance(node, (*_STATEMENTS, *_EXPRESSIONS)):
            self._refuse(node)
        super().generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> None:
        """Allowed: a trace that reaches it fails."""

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.visit(node.target)
        if node.value is not None:
            self.visit(node.value)

    def visit_Compare(self, node: ast.Compare) -> None:
        for kind, other in zip(node.ops, node.comparators, strict=True):
            if isinstance(kind, (ast.Is, ast.IsNot)) and not (
                isinstance(other, ast.Constant) and other.value is None
            ):
                self._refuse(node)
        super().generic_visit(node)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        if not isinstance(node.ctx, ast.Load):
            self._refuse(node)
        super().generic_visit(node)

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Load):
            self._may_be_read(self._value(node), node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if not isinstance(node.ctx, ast.Load):
            self._refuse(node)
        value = self._value(node)
        if value is _COMPUTED:
            if node.attr not in ATTRIBUTES_OF_TENSORS:
                self._refuse(node)
            self.visit(node.value)
        self._may_be_read(value, node)

    def visit_Call(self, node: ast.Call) -> None:
        match node.func:
            case ast.Attribute(value=ast.Call(func=ast.Name(id="super"), args=[]), attr=name):
                self._reader.read_function(self._inherited(name, node), self._part)
            case function if (value := self._value(function)) is not _COMPUTED:
                self._may_be_called(value, node)
            case ast.Attribute(value=ast.Name(id=owner), attr="append" | "extend") if owner in self._lists:
                pass
            case ast.Attribute(value=owner, attr=name):
                if name.removesuffix("_") not in OF_TENSORS:
                    self._refuse(node)
                self.visit(owner)
            case layer:
                self.visit(layer)
        for argument in (*node.args, *node.keywords):
            self.visit(argument)

    def _may_be_read(self, value: Any, node: ast.AST) -> None:
        if value is not _COMPUTED and not isinstance(value, (nn.Module, Tensor)) and not _is_number(value):
            self._refuse(node)

    def _may_be_called(self, value: Any, node: ast.Call) -> None:
        is_listed = id(value) in _FUNCTIONS or any(value is function for function in _BUILTINS)
        is_of_numbers = isinstance(value, BuiltinFunctionType) and value.__module__ == math.__name__
        if value is None or isinstance(value, nn.Module) or is_listed or is_of_numbers:
            return  # None: a call that would fail, so it is not reached
        if isinstance(value, _Method):
            if _is_known(value.function) and value.function.__name__ in METHODS_OF_LAYERS:
                return
            if _is_known(type(value.owner)):
                self._refuse(node)
            self._reader.read_function(value.function, value.owner)
            return
        if not isinstance(value, FunctionType) or _package(value) == "torch":
            self._refuse(node)
        self._reader.read_function(value)

    def _value(self, node: ast.expr) -> Any:
        """Returns the object behind a name or its attribute if known without computing, else _COMPUTED."""
        match node:
            case ast.Name(id=name):
                if name == self._self:
                    return self._part
                return _COMPUTED if name in self._locals else self._of_namespace(name, node)
            case ast.Attribute(value=base, attr=name):
                owner = self._value(base)
                if isinstance(owner, nn.Module):
                    return self._of_layer(owner, name, node)
                if isinstance(owner, ModuleType):
                    return self._among(vars(owner), name, node)
                if owner is not _COMPUTED and not isinstance(owner, Tensor):
                    self._refuse(node)
        return _COMPUTED

    def _of_namespace(self, name: str, node: ast.expr) -> Any:
        free = self._function.__code__.co_freevars
        if name not in free:
            namespace = self._function.__globals__
            return self._among(namespace if name in namespace else vars(builtins), name, node)
        try:
            value = (self._function.__closure__ or ())[free.index(name)].cell_contents
        except ValueError:  # an empty cell
            self._refuse(node)
        if not callable(value):  # other functions that share it may change it
            self._refuse(node)
        return value

    def _among(self, namespace: dict[str, Any], name: str, node: ast.expr) -> Any:
        value = namespace.get(name, _ABSENT)
        if _is_number(value):
            if name in _globals_set_in(namespace.get("__file__") or self._function.__code__.co_filename):
                self._refuse(node)
            self._reader.fixed[id(namespace), name] = Fixed(namespace, name, value)
        elif value is _ABSENT or isinstance(value, Tensor):
            self._refuse(node)
        return value

    def _of_layer(self, owner: nn.Module, name: str, node: ast.expr) -> Any:
        """Returns an attribute of a layer. Refuses attributes that the layer may set after construction."""
        kind: Any = type(owner)
        held, later = vars(owner), _set_after_construction(kind)
        if name == "training" or name in later or ANY in later:
            self._refuse(node)
        if name in held["_parameters"] or (name in held["_buffers"] and owner is self._part):
            return held["_parameters"].get(name, held["_buffers"].get(name))
        of_class = next((vars(base)[name] for base in kind.__mro__ if name in vars(base)), _ABSENT)
        value = held["_modules"].get(name, held.get(name, of_class))
        if value is of_class and isinstance(value, FunctionType):
            return _Method(owner, value)
        if value is of_class and isinstance(value, staticmethod):
            return value.__func__
        if not isinstance(value, nn.Module):
            is_of_another = owner is not self._part and _package(kind) != "torch"
            is_function = isinstance(value, FunctionType) or id(value) in _FUNCTIONS
            if is_of_another or not (_is_number(value) or is_function):
                self._refuse(node)
        self._reader.fixed[id(owner), name] = Fixed(owner, name, value)
        return value

    def _inherited(self, name: str, node: ast.Call) -> Any:
        """Returns what `super()` finds under a name."""
        if self._part is None or "__class__" not in self._function.__code__.co_freevars:
            self._refuse(node)
        cells = dict(zip(self._function.__code__.co_freevars, self._function.__closure__ or (), strict=True))
        order = type(self._part).__mro__
        above = order[order.index(cells["__class__"].cell_contents) + 1 :]
        return next((vars(kind)[name] for kind in above if name in vars(kind)), None)


def _package(thing: Any) -> str:
    """Returns the top-level package of a class or function."""
    return str(getattr(thing, "__module__", "")).split(".")[0]


def _is_known(thing: Any) -> bool:
    return _package(thing) in KNOWN


def _is_number(value: Any) -> bool:
    return isinstance(value, _NUMBERS) or (isinstance(value, tuple) and all(map(_is_number, value)))


@cache
def _definition(code: CodeType) -> ast.FunctionDef | ast.Lambda | None:
    """Returns a function's source if its file has not changed since; a lambda's if alone in its line."""
    try:
        codes, functions = _read("".join(linecache.getlines(code.co_filename)), code.co_filename)
    except (SyntaxError, ValueError):
        return None
    of_this_name = functions.get((code.co_name, code.co_firstlineno), ())
    return of_this_name[0] if code in codes and len(of_this_name) == 1 else None


@lru_cache(maxsize=4)
def _read(
    text: str, file: str
) -> tuple[set[CodeType], dict[tuple[str, int], list[ast.FunctionDef | ast.Lambda]]]:
    """Returns the codes of a file's functions, and their sources by name and first line.

    Networks have many classes in one file, which takes a tenth of a second to read. Raises SyntaxError, ValueError.
    """
    source = ast.parse(text)
    functions: dict[tuple[str, int], list[ast.FunctionDef | ast.Lambda]] = {}
    for node in ast.walk(source):
        if isinstance(node, ast.FunctionDef):
            functions.setdefault((node.name, _line(node)), []).append(node)
        elif isinstance(node, ast.Lambda):
            functions.setdefault(("<lambda>", node.lineno), []).append(node)
    return set(_codes_within(compile(source, file, "exec", dont_inherit=True))), functions


def _line(function: ast.FunctionDef) -> int:
    """Returns the function's first line, including decorators."""
    return min([function.lineno, *(decorator.lineno for decorator in function.decorator_list)])


def _lists(nodes: list[ast.AST]) -> set[str]:
    """Returns the names to which a function assigns only lists that it makes itself."""
    lists: set[str] = set()
    others: set[str] = set()
    for node in nodes:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.List() | ast.ListComp()):
                lists.add(name)
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.List() | ast.ListComp()):
                lists.add(name)
            case ast.Assign(targets=targets):
                others.update(
                    part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)
                )
            case ast.AnnAssign(target=ast.Name(id=name)) | ast.AugAssign(target=ast.Name(id=name)):
                others.add(name)
            case ast.For(target=target) | ast.comprehension(target=target):
                others.update(part.id for part in ast.walk(target) if isinstance(part, ast.Name))
    return lists - others


@cache
def _globals_set_in(file: str) -> frozenset[str]:
    """Returns the globals of a file that its functions may set."""
    try:
        source = ast.parse("".join(linecache.getlines(file)))
    except (SyntaxError, ValueError):
        return frozenset()
    return frozenset(name for node in ast.walk(source) if isinstance(node, ast.Global) for name in node.names)


@cache
def _set_after_construction(kind: Any) -> frozenset[str]:
    """Returns the attributes that methods of a class other than its constructor set."""
    names: set[str] = set()
    for cls in kind.__mro__:
        for name, value in () if _is_known(cls) else vars(cls).items():
            for function in (value, *(getattr(value, part, None) for part in ("__func__", "fget", "fset"))):
                if isinstance(function, FunctionType):
                    code = function.__code__
                    codes = [*_codes_within(code), *(() if name == "__init__" else (code,))]
                    names.update(attribute for each in codes for attribute in _attributes_set_in(each))
    return frozenset(names)


def _attributes_set_in(code: CodeType) -> Iterator[str]:
    if {"setattr", "__setattr__", "__dict__", "vars"}.intersection(code.co_names):
        yield ANY
    for instruction in get_instructions(code):
        if instruction.opname == "STORE_ATTR":
            yield instruction.argval


def _codes_within(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _codes_within(constant)
