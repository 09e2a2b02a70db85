"""The dtypes that this machine's processor multiplies with oneDNN."""

import torch

from mlfilter_core.compute import onednn

ONEDNN_DTYPES = [dtype for dtype in (torch.float32, torch.bfloat16) if onednn.is_available(dtype)]
