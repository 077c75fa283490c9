"""Refuses what a command line would take silently: an option given twice, both ways of a switch, an empty name or path."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, get_args, get_type_hints

from typer.core import TyperGroup

from sltt_bench.common.errors import UserError


class VerbsGivenOnce(TyperGroup):
    """An option that takes one value is given once, a switch one way, and no name or path is empty: the last would
    count, and an empty path would be the folder at hand (a shell's variable that is not set), without a word."""

    settable: ClassVar[tuple[str, ...]] = (
        "data",
        "model",
        "neuron",
        "timesteps",
        "test_timesteps",
        "loss",
        "train",
        "native",
        "target",
    )
    """Sections and fields of a recipe that --set of these verbs takes, and whose words mean nothing else: `seed` is not
    that of the validation split."""

    def resolve_command(self, ctx: Any, args: Any) -> Any:
        if args[0] not in self.commands and not ctx.resilient_parsing:
            _check_is_no_part(self, ctx, args[0])
        name, command, rest = super().resolve_command(ctx, args)
        if not (command is None or isinstance(command, TyperGroup) or ctx.resilient_parsing):
            within = command.context_class(command, info_name=name, parent=ctx)
            try:
                values, _, given = command.make_parser(within).parse_args(args=list(rest))
            except Exception as error:
                _check_is_no_field(command, getattr(error, "option_name", ""), self.settable)
                raise
            _check_given_once(given, rest)
            _check_not_empty(command, values)
        return name, command, rest


def _check_is_no_part(group: TyperGroup, ctx: Any, word: str) -> None:
    """Raises UserError for a word that is a command of a group within this one, or one of its options without --."""
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup) and word in command.commands:
            raise UserError(f"no command {word!r} (did you mean '{name} {word}'?)")
    if any(f"--{word}" in parameter.opts for parameter in group.get_params(ctx)):
        raise UserError(f"no command {word!r} (did you mean '--{word}'?)")


def _check_is_no_field(command: Any, option: str, settable: Sequence[str]) -> None:
    """Raises UserError for an option that there is not, nor one in the singular, but a field of `settable` that --set sets."""
    from sltt_bench.planning.recipe_fields import section_of
    from sltt_bench.planning.recipe_validation import place_of

    known = [name for parameter in command.params for name in parameter.opts]
    place = place_of(option.lstrip("-").replace("-", "_"))
    if place is None or section_of(place) not in settable:
        return
    if "--set" in known and not {option, option.removesuffix("s")}.intersection(known):
        raise UserError(f"{option}: no such option; a field of the recipe is set with --set {place}=VALUE")


def _check_given_once(given: Sequence[Any], words: Sequence[str]) -> None:
    """Raises UserError for parameters that are `given` in a way of which one word would count alone."""
    for option, times in Counter(given).items():
        if times > 1 and not option.multiple and not getattr(option, "is_flag", True):
            each = "give it once, with commas where it takes several values"
            raise UserError(f"{max(option.opts, key=len)} is given {times} times; {each}")
        ways = (option.opts, getattr(option, "secondary_opts", []))
        if times > 1 and all(set(way).intersection(words) for way in ways):
            raise UserError(f"{' and '.join(way[0] for way in ways)} exclude each other; give one of them")


def _check_not_empty(command: Any, values: Mapping[str, Any]) -> None:
    """Raises UserError for an argument, or an option's path, that is an empty word."""
    hints = get_type_hints(command.callback)
    for parameter in command.params:
        value, hint = values.get(parameter.name), hints.get(parameter.name)
        is_argument = parameter.param_type_name == "argument"
        if (is_argument or Path in (hint, *get_args(hint))) and "" in _each(value):
            label = (
                (parameter.metavar or parameter.name.upper()) if is_argument else max(parameter.opts, key=len)
            )
            raise UserError(f"{label} '': is empty; a variable of the shell that is not set?")


def _each(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) else [value]
