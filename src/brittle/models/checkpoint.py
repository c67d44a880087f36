"""Checkpoints: files of tensors that are whole or not there, however their process ends."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor


def save(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes a safetensors file in place of what was there: under another name first, which is then renamed."""
    temporary = path.with_name(f"{path.name}.tmp")
    separate = {name: value.cpu().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}
    save_file(separate, temporary, dict(metadata) if metadata else None)
    os.replace(temporary, path)
