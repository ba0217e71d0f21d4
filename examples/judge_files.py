"""Files of any tool on one measured footing: ONNX Runtime's own quantizer, judged.

python examples/judge_files.py
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from digits import trained
from onnxruntime.quantization import quantize_dynamic

STUDY = """\
model: {factory: "digits:trained"}
data: {factory: "digits:splits"}
budget: ["latency<=0.8x"]
max_accuracy_drop: 1.0
"""


def main() -> None:
    """The study says model, data, target and what has to be met; nothing is searched."""
    torch.onnx.export(trained(), (torch.zeros(2, 1, 8, 8),), "whole.onnx", dynamo=False,
                      input_names=["images"], dynamic_axes={"images": {0: "batch"}})  # fmt: skip
    quantize_dynamic("whole.onnx", "theirs.onnx")
    Path("judged.yaml").write_text(STUDY)
    command = [sys.executable, "-m", "autocompress", "judge", "whole.onnx", "theirs.onnx"]
    here = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    subprocess.run(
        [*command, "--study", "judged.yaml"], check=True, env={**os.environ, "PYTHONPATH": here}
    )


if __name__ == "__main__":
    main()
