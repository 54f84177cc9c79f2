"""An extension of griffe for the reference of Python: the comment at the end of a field's line is the field's documentation."""

from __future__ import annotations

import re
from typing import Any

from griffe import Attribute, Docstring, Extension


class FieldComments(Extension):
    """Comments that only speak to tools are left out."""

    def on_attribute_instance(self, *, attr: Attribute, **others: Any) -> None:
        """Hook of griffe, called for every field."""
        comment = attr.source.rstrip().rpartition("\n")[2].partition("  # ")[2]
        if attr.docstring is None and not re.match(r"$|noqa|type:|fmt:", comment):
            attr.docstring = Docstring(comment[0].upper() + comment[1:].rstrip(".") + ".", lineno=attr.lineno, parent=attr)
