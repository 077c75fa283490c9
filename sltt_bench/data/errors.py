"""What can be wrong with data: one exception, and the sentences that several data sets share."""

import tokenize
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sltt_bench.errors import UserError

NOT_NUMPY = (OSError, ValueError, EOFError, tokenize.TokenError)
"""What numpy.load raises for a file that is cut short or altered; the last for a header that is no Python."""


class DataError(UserError):
    """The data are missing or not what the recipe says; the message names the file and the remedy."""


class UnendingRead(DataError):
    """Reading a file does not come to an end; who looks through many samples of it looks no further."""


def absent(name: str, looked_for: Path, data_dir: Path, prepared_as: str | None = None) -> DataError:
    """The error for a data set of which `looked_for` is not there; `prepared_as`: DataSource.prepared_as."""
    return DataError(
        f"data set {name!r} is not there: looked for {looked_for}; "
        f"`sltt-bench data prepare {prepared_as or name} --data-dir {data_dir}` gets it or says how; "
        "--synthetic measures memory and time without it"
    )


def damaged(name: str, file: Path, reason: object) -> DataError:
    """The error for a file of a data set that is there but cannot be read."""
    return DataError(
        f"data set {name!r}: {file} cannot be read: {reason}; replace it "
        f"(`sltt-bench data verify {name}` looks for more such files)"
    )


@contextmanager
def reading(name: str, file: Path, *faults: type[Exception], reason: str = "{}") -> Iterator[None]:
    """Where reading a file fails in one of these ways: the error for a damaged one.

    In its `reason`, {} stands for the fault's own words, or where it has none for what it is called.
    """
    try:
        yield
    except faults as error:
        raise damaged(name, file, reason.format(str(error) or type(error).__name__)) from None
