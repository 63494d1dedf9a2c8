"""Checks of values that came from outside. Each returns the value with its type, or raises ValueError.

JSON says `true` where a number belongs, and Python takes that for 1; JSON in the wild says NaN. Both
end here.
"""

import json
import math
from collections.abc import Mapping
from typing import Any, NoReturn

import msgspec


class NotFiniteError(ValueError):
    """A number that is NaN or infinite: never a value."""


def _refuse_constant(text: str) -> NoReturn:
    raise NotFiniteError(f"{text} is not a value")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def load_object(text: str | bytes) -> dict[str, Any]:
    """The JSON object that `text` holds. Raises ValueError (NotFiniteError for NaN and Infinity)."""
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        value = _slowly(text)
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


def _slowly(text: str | bytes) -> object:
    """As Python's own decoder sees it: the fast one cannot tell NaN from garbage."""
    try:
        plain = text if isinstance(text, str) else text.decode()
        value = _DECODER.decode(plain)
        json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is no text
        return value
    except RecursionError:
        raise ValueError("nested too deeply") from None


def mapping(value: object, name: str) -> Mapping[str, Any]:
    """A JSON object."""
    if not isinstance(value, dict):
        raise ValueError(f"{name} is not an object")
    return value


def sequence(value: object, name: str) -> list[Any]:
    """A JSON list."""
    if not isinstance(value, list):
        raise ValueError(f"{name} is not a list")
    return value


def text(value: object, name: str) -> str:
    """A text."""
    if not isinstance(value, str):
        raise ValueError(f"{name} is not a text")
    return value


def whole(value: object, name: str, *, low: int = 0, high: int = 2**63 - 1) -> int:
    """A whole number from `low` to `high`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{name} is not a whole number")
    if not low <= value <= high:
        raise ValueError(f"{name} is {value}; {low} to {high} is allowed")
    return value


def number(value: object, name: str, *, low: float = 0.0, high: float = 1e15) -> float:
    """A finite number from `low` to `high`."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} is not a number")
    if isinstance(value, float) and not math.isfinite(value):
        raise NotFiniteError(f"{name} is {value}")
    if not low <= value <= high:
        raise ValueError(f"{name} is {value}; {low:g} to {high:g} is allowed")
    return float(value)


def boolean(value: object, name: str) -> bool:
    """true or false."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} is not true or false")
    return value


def one_of(value: object, name: str, allowed: tuple[str, ...]) -> str:
    """One of the texts in `allowed`."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name} is {value!r}; allowed: {', '.join(allowed)}")
    return value
