"""Import torchvision beside a CPU-only torch; see ``recover._torchvision``."""

from autocompress.recover._torchvision import torchvision

__all__ = ["torchvision"]
