"""AEDAT 4 files, decoded in a process beside this one: at some damaged ones the decoder ends its process.

The decoder is Rust, whose panics at the border to Python abort.
"""

from pathlib import Path

import numpy as np

from sltt_bench.common.extras import load_extra
from sltt_bench.data.beside import Lost, ask, serve
from sltt_bench.data.errors import DataError
from sltt_bench.data.events import EVENT, UnreadableEvents, as_events, brighter

LIMIT_S = 600
"""A recording of 100 million events takes half a minute."""


def read_aedat4(file: Path) -> np.ndarray:
    """The events [N] of the first stream of events in a file, of dtype EVENT. Raises UnreadableEvents, DataError."""
    load_extra("aedat", "events", f"reading {file}", DataError)
    try:
        fault, events = ask(__name__, str(file), LIMIT_S)
    except Lost as lost:
        raise UnreadableEvents(f"not a whole AEDAT 4 file (its decoder was {lost})") from None
    if fault is not None:
        raise UnreadableEvents(fault)
    return np.frombuffer(events, EVENT)


# Within the process beside ----------------------------------------------------------------------


def _answer(file: str) -> tuple[str | None, bytes]:
    """What is wrong with the file, and its events."""
    try:
        return None, _decoded(file).tobytes()
    except UnreadableEvents as error:
        return str(error), b""


def _decoded(file: str) -> np.ndarray:
    """The events [N] in a file. Raises UnreadableEvents."""
    import aedat

    try:
        decoder = aedat.Decoder(file)
        streams = decoder.id_to_stream().items()
        chosen = min((number for number, stream in streams if stream["type"] == "events"), default=None)
        packets = [packet["events"] for packet in decoder if packet["stream_id"] == chosen]
    # The decoder raises RuntimeError and others; where it panics, what it raises is a BaseException, of a class that
    # cannot be imported.
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UnreadableEvents(f"not a whole AEDAT 4 file ({error})") from None
    if not packets:
        return np.empty(0, EVENT)
    raw = np.concatenate(packets)
    t, x, y, p = (raw[name] for name in raw.dtype.names or ())
    return as_events(t, x, y, brighter(p))


if __name__ == "__main__":
    serve(_answer)
