"""What holds where nobody says otherwise; light, for the command line names it in its help."""

from __future__ import annotations

DEFAULT_RUNTIME = "onnxruntime"
"""Where a model runs."""
