"""Imports what workers need: loaded in the process that they are forked from, and nowhere else.

Nothing here may start a thread, which a fork would leave dead (OpenBLAS, which has its own handler
for that, does). ONNX Runtime does, so that each worker imports it for itself.
"""

from importlib import import_module

from autocompress.execute.processes import leave_ends_to_the_study

leave_ends_to_the_study()

for _name in (
    "torch._dynamo",
    "autocompress.run.assembly",
    "autocompress.build.pipeline",
    "autocompress.build.bank",
    "autocompress.build.lockstep",
    "autocompress.exporters.checked",
    "autocompress.measure.measurer",
    "autocompress.recover.engine",
    "autocompress.execute.worker",
):
    try:
        import_module(_name)
    except Exception:  # whoever needs it imports it again, and tells
        continue
