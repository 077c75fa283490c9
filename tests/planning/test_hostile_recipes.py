"""Recipes that are no recipes, and numbers that no experiment can have: one clear message, in bounded time."""

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from thinned import thinned
from typer.testing import CliRunner

from sltt_bench.command_line.cli import app
from sltt_bench.common.yaml_text import MAX_BYTES, YAMLFault, dump_yaml, parse_yaml
from sltt_bench.planning.overrides import parse_overrides
from sltt_bench.planning.recipe import load_recipe
from sltt_bench.planning.recipe_faults import RecipeError
from sltt_bench.planning.recipe_files import find_recipe, recipe_names

Write = Callable[[str, str], Path]

_LAUGHS = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{f'*a{i - 1},' * 9}]\n" for i in range(1, 12))
NO_RECIPES = {
    "empty": ("", "must be a mapping"),
    "a list": ("- 1\n", "must be a mapping"),
    "a word": ("digits\n", "must be a mapping"),
    "nested lists": (
        "description: " + "[" * 500 + "]" * 500,
        "line 1, column 29: nested deeper than 16 levels",
    ),
    "nested lists without an end": ("description: " + "[" * 3_000, "nested deeper than 16 levels"),
    "nested maps": ("".join(f"{' ' * i}a:\n" for i in range(300)), "nested deeper than 16 levels"),
    "a list as a key": ("? [1, 2]\n: 3\n", "line 1: a list is no key"),
    "a map as a key": ("{a: 1}: 3\n", "line 1: a dict is no key"),
    "a number as a key": ("extends: digits\n5: 3\n", "line 2: 5 is no key"),
    "a truth value as a key": ("extends: digits\ntrue: 3\n", "line 2: true is no key"),
    "smoke is a list": ("extends: digits\nsmoke: [1, 2]\n", "smoke: must be a mapping of keys to values"),
    "smoke is text": ("extends: digits\nsmoke: tiny\n", "smoke: must be a mapping of keys to values"),
    "smoke has numbers as keys": ("extends: digits\nsmoke: {1: 2}\n", "line 2: 1 is no key"),
    "extends a list": ("extends: [digits]\n", "extends: must be one recipe's name"),
    "extends a map": ("extends: {a: 1}\n", "extends: must be one recipe's name"),
    "extends 5,000 characters": (f"extends: {'x' * 5000}\n", "extends: no recipe 'xxx"),
    "extends nothing there": ("extends: digit\n", "extends: no recipe 'digit'"),
    "5,000 characters as a key": (f"extends: digits\n? {'k' * 5000}\n: 1\n", "kkk…: unknown key"),
    "5,000 characters as a value": (
        f"extends: digits\ntimesteps: {'v' * 5000}\n",
        "timesteps: Input should be",
    ),
    "200 unknown keys": ("".join(f"k{i}: 1\n" for i in range(200)), "more faults"),
    "2 MB of list": ("a: [" + "1, " * 700_000 + "]", "has more than 64 KiB"),
    "5,100 values": ("a: [" + "1, " * 5100 + "]", "holds more than 5000 values"),
    "aliases that multiply": (_LAUGHS, "holds more than 5000 values"),
    "an alias of itself": ("a: &a [*a]\n", "an alias of what it stands in"),
    "an alias of nothing": ("a: *b\n", "undefined alias 'b'"),
    "a number of 5,000 digits": (f"timesteps: {'9' * 5000}\n", "line 1: a number of 5000 digits"),
    "a tab": ("train:\n\tepochs: 2\n", "line 2, column 1: a tab; YAML is indented with spaces"),
    "a non-breaking space": (
        "extends: digits\nseeds: [1]\u00a0\n",
        "line 2, column 11: a non-breaking space",
    ),
    "no space behind a colon": (
        "extends: digits\ntrain:{epochs: 2}\n",
        "line 2: 'train:{epochs' is no key: a colon",
    ),
    "a non-breaking space behind a colon": (
        "train:\u00a0{epochs: 2}\n",
        "line 1: 'train:\\xa0{epochs' is no key",
    ),
    "no colon": ("extends digits\ntrain: 3\n", "the line before may lack its colon"),
    "text behind a value": ("extends: digits\nseeds: [1];\n", "something may stand behind a value"),
    "round quotes": (
        "extends: digits\nneuron: {reset: “soft”}\n",
        "'“soft”'; text is quoted with plain quotes",
    ),
    "a control character": ("description: a\nname: \x07\n", "line 2: the control character '\\x07'"),
    "half a letter": (
        'description: "\\ud800"\n',
        "line 1: '\\ud800' is half a letter, which no file can hold",
    ),
    "two documents": ("--- {a: 1}\n--- {a: 2}\n", "line 2, column 1: expected a single document"),
    "python objects": ("a: !!python/object/apply:os.system ['true']\n", "line 1: the tag"),
    "a date": ("extends: digits\ntimesteps: 2024-01-01\n", "timesteps: Input should be a valid integer"),
    "bytes": ("extends: digits\ndescription: !!binary aGk=\n", "line 2: the tag"),
    "a merge key": ("<<: {timesteps: 3}\nextends: digits\n", "<<: unknown key"),
    "an underscore in a number": (
        "extends: digits\ntimesteps: 1_0\n",
        "but it is '1_0'; YAML 1.2 has no underscores",
    ),
    "on for true": (
        "extends: digits\ntrain: {drop_last: on}\n",
        "but it is 'on'; YAML 1.2 writes true and false",
    ),
    "data is a list": ("extends: digits\ndata: [digits]\n", "data: must be a mapping with a `name`"),
    "the model's name is a list": ("extends: digits\nmodel: {name: [cnn]}\n", "model: must be a mapping"),
    "methods is text": ("extends: digits\nmethods: bptt\n", "methods: must be a list, in brackets"),
    "seeds are text": ("extends: digits\nseeds: ['1']\n", "seeds.0: Input should be a valid integer"),
    "claims is a map": ("extends: digits\nclaims: {a: 1}\n", "claims: must be a list, in brackets"),
}


@pytest.mark.parametrize("case", NO_RECIPES)
def test_what_is_no_recipe_is_refused_in_one_message(case: str, write_recipe: Write) -> None:
    text, fault = NO_RECIPES[case]
    path = write_recipe("hostile", text)
    start = time.process_time()
    for arguments in (["show", str(path)], ["show", str(path), "--smoke"]):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 2, result.output
        assert fault in result.output
        assert str(path) in result.output
        assert len(result.output) < 10_000
    assert time.process_time() - start < 20


def test_what_is_not_utf8_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "latin.yaml"
    path.write_bytes("extends: digits\ndescription: Gemäß\n".encode("latin-1"))
    with pytest.raises(RecipeError, match="line 2 is not UTF-8 text; save the file as UTF-8"):
        load_recipe(str(path))
    path.write_bytes("extends: digits\n".encode("utf-16"))
    with pytest.raises(RecipeError, match="line 1 is not UTF-8 text"):
        load_recipe(str(path))


def test_fifty_megabytes_are_refused_without_being_read(tmp_path: Path) -> None:
    path = tmp_path / "long.yaml"
    with path.open("wb") as file:
        file.truncate(50 * 2**20)
    start = time.process_time()
    with pytest.raises(RecipeError, match="has more than 64 KiB"):
        load_recipe(str(path))
    assert time.process_time() - start < 0.5


def test_windows_line_ends_and_a_byte_order_mark_change_nothing(tmp_path: Path) -> None:
    text = find_recipe("digits").read_text()
    path = tmp_path / "digits.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert load_recipe(str(path)) == load_recipe("digits")


@pytest.mark.parametrize("base", ["me", "../folder/me", "../folder/../folder/me"])
def test_a_recipe_that_extends_itself_by_any_path_is_refused(base: str, tmp_path: Path) -> None:
    path = tmp_path / "folder" / "me.yaml"
    path.parent.mkdir()
    path.write_text(f"extends: {base}\n")
    with pytest.raises(RecipeError, match=r"extends itself: me\.yaml → me\.yaml"):
        load_recipe(str(path))


def test_a_long_chain_of_extends_is_refused(write_recipe: Write) -> None:
    for number in range(40):
        write_recipe(f"r{number}", f"extends: r{number + 1}\n")
    with pytest.raises(RecipeError, match="16th recipe in a chain of extends"):
        load_recipe(str(write_recipe("r", "extends: r0\n")))


NAMES = ["a b", "-a", ".a", "a[b]", "a$b", "a\x1bb", "a;b", "a'b", "Ümläut" * 30, "x" * 101, "[/dim]a"]


@pytest.mark.parametrize("name", NAMES)
def test_a_recipes_name_is_one_path_component(name: str, write_recipe: Write) -> None:
    path = write_recipe(name.replace("/", "")[:120], "extends: digits\n")
    with pytest.raises(RecipeError, match="is no recipe's name: letters, digits"):
        load_recipe(str(path))


@pytest.mark.parametrize("name", ["mnist", "../../x", "a/b", "..", ".", "", "a\0b", "a\nb", "C:\\x"])
def test_no_override_names_another_recipe_or_a_folder_outside_the_results(name: str) -> None:
    with pytest.raises(RecipeError, match=r"--set name: a recipe's name is that of its file"):
        load_recipe("digits", {"name": name})


@pytest.mark.parametrize("name", ["digits-2", "réseau_γ", "数字", "T.1", "x" * 80])
def test_letters_of_any_language_make_a_name(name: str, write_recipe: Write) -> None:
    assert load_recipe(str(write_recipe(name, "extends: digits\n"))).name == name


@pytest.mark.parametrize(
    "name", ["x" * 5000, "x" * 5000 + ".yaml", "a/" * 3000, "\0.yaml", "", ".", "/", "digits\0"]
)
def test_what_cannot_be_a_path_is_no_recipe(name: str) -> None:
    with pytest.raises(RecipeError, match=r"no such file|no recipe has this name"):
        find_recipe(name)


IMPOSSIBLE = {
    "train.lr": [".inf", ".nan", "-0.1", "1e400", "1e7"],
    "train.weight_decay": [".inf", "-1", "1e300"],
    "train.momentum": [".nan", "1.5"],
    "train.epochs": ["0", "-1", "1000000", "1000000000", "2.5", "99999999999999999999999999"],
    "train.batch_size": ["0", "1000000000000"],
    "timesteps": ["0", "-4", "1000000", "1000000000", "99999999999999999999"],
    "neuron.tau": [".inf", ".nan", "0.5", "1e300"],
    "neuron.v_threshold": [".inf", "1e-300", "0", "-1", "1e300"],
    "neuron.v_reset": ["-.inf", ".nan"],
    "loss.alpha": [".nan", "-0.1", "1.1"],
    "seeds": ["[-1]", "[4294967296]", "[]", "[1.5]"],
    "data.workers": ["-1", "1000000"],
    "data.prefetch_factor": ["0", "1000000"],
    "data.train_samples": ["0", "1000000000000"],
    "model.channels": ["[]", "[0]", "[-1]", "[1000000000]", "[2.5]"],
    "model.dropout": ["1.0", ".nan", "-0.1"],
}


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in IMPOSSIBLE.items() for value in values]
)
def test_a_number_that_no_experiment_can_have_is_refused_with_its_key(key: str, value: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("digits", parse_overrides([f"{key}={value}"])[0])
    assert all(fault.startswith(key) for fault in caught.value.faults)


def test_a_grid_of_more_points_than_anybody_means_is_refused() -> None:
    many = ",".join(map(str, range(1, 200)))
    with pytest.raises(RecipeError) as caught:
        parse_overrides(
            [f"timesteps={many}", f"train.epochs={many}", f"train.batch_size={many}", "seeds=[1]"],
            ["--timesteps", "--set train.epochs", "--batch-size", "--set seeds"],
        )
    fault = "a grid of 7880599 points; at most 2000 are taken"
    assert str(caught.value) == f"--timesteps, --set train.epochs, --batch-size: {fault}"


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ('"a, b"', ["a, b"]),
        ("'it''s, b',c", ["it's, b", "c"]),
        ('"a\\", [b",c', ['a", [b', "c"]),
        ("it's,that's", ["it's", "that's"]),
        ('[1,"x,]"],[2]', [[1, "x,]"], [2]]),
    ],
)
def test_a_comma_in_quotes_opens_no_grid(text: str, values: list[object]) -> None:
    assert parse_overrides([f"a={text}"]) == [{"a": value} for value in values]


def test_a_key_set_twice_names_both() -> None:
    with pytest.raises(RecipeError, match="--set timesteps: is given twice, as '2,3' and '4'"):
        parse_overrides(["timesteps=2,3", "timesteps=4"])


@pytest.mark.parametrize(
    "override", ["a=" + "[" * 400, "a={", "a=\t", "a=!!python/name:os.system", "a=\x07", "=1", "a"]
)
def test_an_override_that_is_no_yaml_names_itself(override: str) -> None:
    with pytest.raises(RecipeError, match="--set"):
        parse_overrides([override])


@pytest.mark.parametrize(
    "override",
    ["a.b.c=1", "train.lr.x=1", "name.x=1", ".=1", "train.=1", "smoke.a.b=1", "data=1", "data.name=1"],
)
def test_an_override_of_what_is_no_field_is_refused(override: str) -> None:
    with pytest.raises(RecipeError):
        load_recipe("digits", parse_overrides([override])[0])


YAML_12 = {
    "on": "on", "off": "off", "yes": "yes", "NO": "NO", "true": True, "True": True, "FALSE": False,
    "1_000": "1_000", "017": 17, "0o17": 15, "0x1F": 31, "0b11": "0b11", "1:30": "1:30", "+12": 12,
    "5e-4": 5e-4, "1e3": 1e3, ".5": 0.5, "1.": 1.0, "2024-01-01": "2024-01-01", "~": None, "null": None, "'1'": "1",
    "!!str 1": "1", "=": "=",
}  # fmt: skip


@pytest.mark.parametrize("text", YAML_12)
def test_words_are_read_as_yaml_12_reads_them(text: str) -> None:
    value = parse_yaml(f"a: {text}")["a"]
    assert value == YAML_12[text]
    assert type(value) is type(YAML_12[text])


@pytest.mark.parametrize("name", thinned(recipe_names(), keep=6))
def test_what_is_written_reads_back(name: str) -> None:
    value = load_recipe(name).model_dump(mode="json")
    assert parse_yaml(dump_yaml(value)) == value
    assert len(dump_yaml(value)) < MAX_BYTES // 4


_LETTERS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@given(
    st.recursive(
        _LETTERS | st.integers() | st.booleans() | st.none(),
        lambda v: st.lists(v) | st.dictionaries(_LETTERS, v),
        max_leaves=4,
    )
)
def test_any_text_that_a_file_can_hold_reads_back_as_it_was_written(value: object) -> None:
    assert parse_yaml(dump_yaml(value)) == value


@pytest.mark.parametrize("text", ["a\x85b", "\x85", "a\x7fb", "\u2028", "\ufeff", "\0"])
def test_what_is_no_letter_reads_back_as_it_was_written(text: str) -> None:
    assert parse_yaml(dump_yaml({text: [text]})) == {text: [text]}


_FRAGMENTS = st.text(alphabet="{}[]:,-?|>&*!%@`'\"\\#\n\t abn01e.~\x00é", max_size=60)
_RECIPES = st.sampled_from([find_recipe(name).read_text()[:1500] for name in ("digits", "imagenet-resnet34")])


@given(_FRAGMENTS)
def test_any_text_is_a_value_or_a_fault(text: str) -> None:
    with suppress(YAMLFault):
        parse_yaml(text)


@given(recipe=_RECIPES, at=st.integers(0, 1499), cut=st.integers(0, 9), fragment=_FRAGMENTS)
def test_a_damaged_recipe_is_a_recipe_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, recipe: str, at: int, cut: int, fragment: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "digits.yaml"
    path.write_text(recipe[:at] + fragment + recipe[at + cut :], encoding="utf-8")
    with suppress(RecipeError):
        load_recipe(str(path), smoke=True)
