"""Keys of what an ONNX file says about itself; loads nothing, for whoever reads them."""

SIZES_KEY = "autocompress.sizes"
"""Axis name to the size that the file was exported with, of its free axes beside the batch."""
