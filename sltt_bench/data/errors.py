"""What can be wrong with data: one exception, and the sentences that several data sets share."""

import shlex
import tokenize
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sltt_bench.common.errors import UserError

if TYPE_CHECKING:
    from sltt_bench.data.source import DataSource

NOT_NUMPY = (OSError, ValueError, EOFError, OverflowError, tokenize.TokenError)
"""What numpy.load raises for a file that is cut short or altered: of a header, OverflowError for a shape that no memory holds,
the last for what is no Python."""


class DataError(UserError):
    """The data are missing or not what the recipe says; the message names the file and the remedy."""


class DamagedData(DataError):
    """Some file is there, but is not what it must be; see `with_remedy`."""


class UnendingRead(DamagedData):
    """Reading a file does not come to an end; who looks through many samples of it looks no further."""


def command(verb: str, source: "DataSource", data_dir: Path) -> str:
    """The `sltt-bench data` command that looks at the very files that the source reads, as a shell takes it."""
    return f"sltt-bench data {verb} {source.as_argument} --data-dir {shlex.quote(str(data_dir))}"


def absent(source: "DataSource", looked_for: Path, data_dir: Path) -> DataError:
    """The error for a data set of which `looked_for` is not there."""
    return DataError(
        f"data set {source.name!r} is not there: looked for {looked_for}; "
        f"`{command('prepare', source, data_dir)}` gets it or says how; "
        "`run --synthetic` measures memory and time without it"
    )


def damaged(name: str, file: Path, reason: object, remedy: str = "replace it") -> DamagedData:
    """The error for a file of a data set that is there but cannot be read."""
    return DamagedData(f"data set {name!r}: {file} cannot be read: {reason}; {remedy}")


@contextmanager
def with_remedy(source: "DataSource", data_dir: Path) -> Iterator[None]:
    """Adds to an error of damaged data the command that looks for more: where a file is read, nobody knows it."""
    try:
        yield
    except DamagedData as error:
        more = f"`{command('verify', source, data_dir)}` looks for more that is wrong"
        raise DamagedData(f"{error} ({more})") from None


@contextmanager
def reading(name: str, file: Path, *faults: type[Exception], reason: str = "{}") -> Iterator[None]:
    """Where reading a file fails in one of these ways: the error for a damaged one.

    In its `reason`, {} stands for the fault's own words, or where it has none for what it is called.
    """
    try:
        yield
    except faults as error:
        raise damaged(name, file, reason.format(str(error) or type(error).__name__)) from None
