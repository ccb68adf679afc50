"""Class-balanced batches from Parquet and Arrow, at the speed of the scan.

>>> import torch, fastbalance as fb
>>> data = {"x": torch.arange(12.0), "y": torch.tensor([0] * 10 + [1] * 2)}
>>> loader = fb.BalancedLoader(data, label="y", batch_size=4, device="cpu")
>>> [batch["y"].sum().item() for batch in loader]
[2, 2, 2]
"""

from . import balance
from .comparison import compare
from .dataset import Dataset
from .loader import BalancedLoader, log_prior_correction
from .order import EpochOrder
from .plan import BalancePlan, make_plan
from .ragged import Ragged
from .resharding import reshard
from .rowrandom import RowRandom
from .samplers import BalancedBatchSampler, BalancedSampler

__version__ = "0.1.0"

__all__ = [
    "BalancePlan",
    "BalancedBatchSampler",
    "BalancedLoader",
    "BalancedSampler",
    "Dataset",
    "EpochOrder",
    "Ragged",
    "RowRandom",
    "balance",
    "compare",
    "log_prior_correction",
    "make_plan",
    "reshard",
]
