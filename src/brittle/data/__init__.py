"""Images in [0, 1] and their labels: digits, MNIST, CIFAR-10, Yale faces, your own folder or arrays."""

from brittle.data.builtin import FileCheck, check, fetch, names, status
from brittle.data.forms import as_split
from brittle.data.loading import load
from brittle.data.split import Data, Split

__all__ = ["Data", "FileCheck", "Split", "as_split", "check", "fetch", "load", "names", "status"]
