"""Keys of what a file says about itself; loads nothing, for whoever reads them."""

SIZES_KEY = "autocompress.sizes"
"""Axis name to the size that the file was exported with, of its free axes beside the batch."""

AXES_KEY = "autocompress.axes"
"""In a program of torch, which has no names of its own: name of every input, in order, to the names
of its free axes by place."""
