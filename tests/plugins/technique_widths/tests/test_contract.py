"""The technique keeps to what autocompress asks of every technique."""

from __future__ import annotations

from autocompress_technique_widths import Widths

from autocompress.testing.technique import TechniqueContract


class TestWidths(TechniqueContract):
    technique = Widths()
