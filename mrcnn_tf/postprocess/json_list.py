"""Reading a JSON list value by value, however long it is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["list_items"]

_CHUNK = 1 << 20  # bytes
_BLANK = " \t\n\r"


def list_items(path: str | Path) -> Iterator[tuple[int, int, Any]]:
    """The values of a file's JSON list, each with the bytes of the file, from and to, that it lies in.

    Of the file, a megabyte is in memory, or a value that is longer.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it does not hold a list in JSON, naming the file and the value's index.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"{path}: no such file; give the path of a COCO results JSON")
    # Latin-1 makes of every byte one character, so that places in the text are places in the file. What JSON is built
    # from is ASCII, which no byte of another character of UTF-8 can be taken for.
    decode = json.JSONDecoder().raw_decode
    with open(path, "rb") as file:
        text, offset, count = "", 0, 0

        def skip(place: int) -> int:
            """The next place that is not blank, after more was read if needed; that of the end, if there is none."""
            nonlocal text, offset
            while True:
                while place < len(text) and text[place] in _BLANK:
                    place += 1
                if place < len(text):
                    return place
                offset += len(text)
                text, place = file.read(_CHUNK).decode("latin-1"), 0
                if not text:
                    return 0

        place = skip(0)
        if text[place : place + 1] != "[":
            raise ValueError(f"{path}: COCO results must be a list of entries, in JSON")
        place = skip(place + 1)
        while text[place : place + 1] != "]":
            where = f"{path}: entry {count}"
            if count:
                if text[place : place + 1] != ",":
                    raise ValueError(
                        f"{where}: not valid JSON before it, at byte {offset + place}; is the file complete?"
                    )
                place = skip(place + 1)
            while True:
                error = None
                try:
                    value, stop = decode(text, place)
                    if text[stop : stop + 1] not in (
                        "",
                        ".",
                        "e",
                        "E",
                    ):  # else a number may go on in what comes
                        break
                except json.JSONDecodeError as found:
                    error = found
                    # What is wrong far from the end of the text does not come right by reading on.
                    if found.pos < len(text) - 64 and not found.msg.startswith("Unterminated string"):
                        raise ValueError(
                            f"{where}: not valid JSON ({found.msg}, byte {offset + found.pos})"
                        ) from None
                more = file.read(max(_CHUNK, len(text))).decode("latin-1")
                if not more:
                    problem = error.msg if error else "the list does not end"
                    raise ValueError(f"{where}: not valid JSON ({problem}); is the file complete?")
                text, offset, place = text[place:] + more, offset + place, 0
            if not text.isascii():
                value = _in_utf8(text[place:stop], where)
            yield offset + place, offset + stop, value
            count += 1
            place = skip(stop)
        place = skip(place + 1)
        if text[place:]:
            raise ValueError(f"{path}: there is something after the end of the list; is the file damaged?")


def _in_utf8(text: str, where: str) -> Any:
    try:
        return json.loads(text.encode("latin-1"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: not valid UTF-8 ({error})") from None
