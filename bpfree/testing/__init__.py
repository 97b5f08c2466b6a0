"""Checks of the invariants of local learning, for losses, trainers and devices.

Each check raises an AssertionError that names the block, parameter or setting that violates the invariant.
The argument ``make_trainer`` is a function that returns a new trainer whose network has the same weights at
each call, and that passes its keyword arguments to the trainer::

    def make_trainer(**settings):
        torch.manual_seed(0)
        return MyTrainer(bpfree.nn.mlp([12, 16, 16, 3]), progress=False, **settings)

    bpfree.testing.assert_resumes(make_trainer, (x, y), tmp_path)
"""

from bpfree._renamed import module_getattr
from bpfree.testing._agreement import assert_one_block_is_backprop, assert_schedules_agree
from bpfree.testing._common import MakeTrainer, assert_same_bits
from bpfree.testing._locality import assert_local, assert_locality
from bpfree.testing._losses import check_local_loss
from bpfree.testing._physical import assert_model_free, assert_pass_counts, assert_replays
from bpfree.testing._quiet import assert_nothing_fails_quietly
from bpfree.testing._reproducible import assert_resumes, assert_same_seed_same_run

__all__ = [
    "MakeTrainer",
    "assert_local",
    "assert_locality",
    "assert_model_free",
    "assert_nothing_fails_quietly",
    "assert_one_block_is_backprop",
    "assert_pass_counts",
    "assert_replays",
    "assert_resumes",
    "assert_same_bits",
    "assert_same_seed_same_run",
    "assert_schedules_agree",
    "check_local_loss",
]

__getattr__ = module_getattr(__name__, {"assert_passes": "assert_pass_counts"})
