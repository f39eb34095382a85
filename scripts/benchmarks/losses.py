"""Times of the losses over plain cross-entropy."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import monai.losses
import torch
import torch.nn.functional as F

from calib_components.losses import LOSSES, NACLLoss
from calib_components.losses.priors import PRIORS
from scripts.benchmarks.timing import Step, print_ratios, set_up

SHAPES = ((16, 4, 224, 224), (2, 5, 96, 96, 96))
MANY_CLASSES = (1, 105, 64, 64, 64)  # as many as TotalSegmentator's, with background


def _forward_backward(loss: Callable, logits: torch.Tensor, target: torch.Tensor) -> None:
    torch.autograd.grad(loss(logits, target), logits)


def losses(device: str = "cpu", rounds: int = 15, threads: int = 2) -> None:
    """See `scripts.helpers.commands.losses`."""
    set_up(rounds, threads)
    for shape in (*SHAPES, MANY_CLASSES):
        num_classes = shape[1]
        logits = torch.randn(shape, device=device, requires_grad=True)
        index = torch.randint(num_classes, (shape[0], *shape[2:]), device=device)
        run = partial(_forward_backward, logits=logits, target=index)
        steps: dict[str, Step] = {"F.cross_entropy": partial(run, F.cross_entropy)}
        steps |= {f"NACLLoss {prior}": partial(run, NACLLoss(prior=prior)) for prior in PRIORS}
        steps["NACLLoss mean, softmax"] = partial(run, NACLLoss(constraint="softmax"))
        steps |= {
            loss.__name__: partial(run, loss()) for loss in LOSSES.values() if loss is not NACLLoss
        }
        for prior in ("mean", "gaussian"):
            monai_nacl = monai.losses.NACLLoss(num_classes, len(shape) - 2, kernel_ops=prior).to(
                device
            )
            steps[f"monai NACLLoss {prior}"] = partial(run, monai_nacl)
        dice_ce = monai.losses.DiceCELoss(to_onehot_y=True, softmax=True)
        steps["monai DiceCELoss"] = partial(_forward_backward, dice_ce, logits, index.unsqueeze(1))
        print_ratios(f"forward + backward, {'x'.join(map(str, shape))}", steps, rounds, device)
