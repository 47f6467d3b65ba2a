"""Looking things up by name, with an error that lists what there is. Holds no other kind of error."""

import difflib
from collections.abc import Mapping


class UnknownNameError(KeyError, ValueError):
    """A name that no table knows; the message lists the valid names."""

    __str__ = ValueError.__str__  # KeyError would show the repr of the message


def unknown(kind: str, name: object, valid) -> UnknownNameError:
    """The error for an unknown `name` of a `kind` ("divergence", "task", ...), listing the valid names."""
    valid = sorted(valid)
    close = difflib.get_close_matches(str(name), valid, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return UnknownNameError(f"unknown {kind} {name!r}; expected one of: {', '.join(valid)}.{hint}")


def lookup(table: Mapping, kind: str, name: object):
    """`table[name]`, or `UnknownNameError` with the valid names."""
    if name not in table:
        raise unknown(kind, name, table)
    return table[name]
