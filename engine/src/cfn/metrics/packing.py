"""Evidence in a small text, for the way to the control host and for the ledger.

Two weeks of one host are some megabytes of JSON that repeats itself; compressed (zlib, base64) a tenth
of that. The size of what comes out is bounded: evidence is read from hosts.
"""

import base64
import binascii
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from cfn.metrics import checks

MAX_BYTES = 134_217_728
_LEVEL = 1  # half as large again as the default, in a third of its time: somebody waits for a gate


def pack(head: Mapping[str, Any], cells: Mapping[str, Iterable[Mapping[str, Any]]]) -> dict[str, Any]:
    """The object that stands for evidence of this head and these lists of cells: its `host`, and the
    rest as `packed`. One cell is in memory at a time."""
    packing = zlib.compressobj(_LEVEL)
    text = [packing.compress(msgspec.json.encode(head)[:-1])]
    for name, each in cells.items():
        text.append(packing.compress(b"," + msgspec.json.encode(name) + b":["))
        for number, cell in enumerate(each):
            text.append(packing.compress((b"," if number else b"") + msgspec.json.encode(cell)))
        text.append(packing.compress(b"]"))
    text.append(packing.compress(b"}") + packing.flush())
    packed = base64.b64encode(b"".join(text)).decode()
    return {"v": head["v"], "host": head["host"], "packed": packed}


def unpack(value: Mapping[str, Any]) -> Mapping[str, Any]:
    """The evidence, packed or not. Raises ValueError."""
    if "packed" not in value:
        return value
    try:
        packed = checks.text(value["packed"], "packed")
        content = base64.b64decode(packed, validate=True)
        if base64.b64encode(content).decode() != packed:  # bits that base64 leaves unused: no byte may change
            raise ValueError("packed is damaged: it is not what was packed")
        unpacking = zlib.decompressobj()
        text = unpacking.decompress(content, MAX_BYTES)
    except (binascii.Error, zlib.error) as error:
        raise ValueError(f"packed is damaged: {error}") from None
    if unpacking.unconsumed_tail or not unpacking.eof:
        raise ValueError(f"packed is cut, or holds more than {MAX_BYTES} bytes")
    return checks.load_object(text)
