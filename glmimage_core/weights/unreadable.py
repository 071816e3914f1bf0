"""Why a file of weights cannot be opened: its bytes are damaged, it is another kind of file, or it says what is unknown here."""

import os
from json import JSONDecodeError
from pathlib import Path

from ..json_text import parse_json
from .formats import NotUnderstood

LENGTH_BYTES = 8  # at the start of a safetensors file: how long its header is
LONGEST_HEADER = 100 * 10**6  # that the library reads
OTHER_KINDS = {
    b"GGUF": "a GGUF file; name it .gguf",
    b"PK\x03\x04": "a pickle of PyTorch, which can run code when it is read; convert it to safetensors first",
    b"\x80": "a pickle, which can run code when it is read; convert it to safetensors first",
    b"version https://git-lfs": "a pointer of Git LFS in place of the file; download the file itself",
    b"<": "a web page in place of the file; download the file itself",
}


def unreadable(file: Path, error: Exception) -> ValueError:
    """What to raise for a safetensors file that the library cannot open, with the library's error where that tells more."""
    with file.open("rb") as opened:
        start = opened.read(max(map(len, OTHER_KINDS)))
        length, size = int.from_bytes(start[:LENGTH_BYTES], "little"), os.fstat(opened.fileno()).st_size
        if size >= LENGTH_BYTES and length > LONGEST_HEADER:
            kind = next((f" but {kind}" for first, kind in OTHER_KINDS.items() if start.startswith(first)), "")
            return ValueError(f"{file} is no safetensors file{kind} ({error})")
        opened.seek(LENGTH_BYTES)
        header = opened.read(length)
    if len(header) == length and _says_all(header, size - LENGTH_BYTES - length):
        return NotUnderstood(f"the header of {file} is not understood: {error}")
    return ValueError(f"{file} is truncated or corrupt ({error}); download it again")


def _says_all(header: bytes, data_bytes: int) -> bool:
    """Whether a header is JSON whose tensors, as far as it gives their places, fill the data without a hole."""
    try:
        tensors = [entry for name, entry in parse_json(header).items() if name != "__metadata__"]
        places = sorted(tuple(tensor["data_offsets"]) for tensor in tensors)
        return [end for _, end in places] == [*(begin for begin, _ in places[1:]), data_bytes][: len(places)]
    except (JSONDecodeError, UnicodeDecodeError):
        return False
    except (AttributeError, LookupError, TypeError, ValueError):
        return True  # JSON of another form
