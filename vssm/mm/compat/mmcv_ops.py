"""mmcv's compiled operators, made from torchvision's, so that mmdet and mmseg run with mmcv-lite, which has none.

mmcv takes its operators from the module ``mmcv._ext``, which only the compiled mmcv has, and there are no wheels of it
for recent torch. `install` adds a finder for that one module to Python's import system; a compiled one is found first.
Operators that are not here raise an error when they are called, which names the package that has them.

The functions have mmcv's names and arguments, and write into the tensors that mmcv passes. They compute in float32 at
least, because torchvision's kernels do not support bfloat16.
"""

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

import torch
import torchvision
from torch import Tensor

from vssm.errors import UserError

MODULE = "mmcv._ext"


class MissingOperatorError(UserError):
    """A call of an operator that only the compiled mmcv has."""


def install() -> None:
    """Make this file ``mmcv._ext`` where there is no compiled one. Imports nothing of mmcv.

    >>> install()
    >>> from mmcv.ops import nms
    >>> boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 5], [8, 8, 9, 9]])
    >>> nms(boxes, torch.tensor([0.5, 0.9, 0.7]), iou_threshold=0.6)[1]
    tensor([1, 2])
    """
    if not any(isinstance(finder, _OperatorFinder) for finder in sys.meta_path):
        sys.meta_path.append(_OperatorFinder())


class _OperatorFinder(MetaPathFinder):
    """Added as the last finder, so it is asked only for what no other has found."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != MODULE:
            return None
        return importlib.util.spec_from_loader(MODULE, _OperatorLoader(), origin=__file__)


class _OperatorLoader(Loader):
    """Fills the module ``mmcv._ext`` with the functions of this file."""

    def create_module(self, spec: ModuleSpec) -> None:
        """None: an ordinary module."""

    def exec_module(self, module: ModuleType) -> None:
        check_torchvision()
        vars(module).update(OPERATORS)
        module.__getattr__ = _missing_operator


def _missing_operator(name: str) -> Callable:
    """Stands for an operator that is not here. Raises when called, because mmcv looks up all operators at import."""
    if name.startswith("__"):
        raise AttributeError(name)

    def refuse(*args: object, **kwargs: object) -> None:
        raise MissingOperatorError(
            f"the operator {name!r} is compiled in mmcv and has no counterpart in torchvision: in place of mmcv-lite, "
            f"compile mmcv (pip uninstall mmcv-lite; pip install mmcv==2.1.0, which takes about 20 minutes)"
        )

    return refuse


def check_torchvision() -> None:
    """Refuse a torchvision whose operators cannot work.

    Raises:
        UserError: torchvision is built for the CPU, and torch for a GPU that is present. (The opposite fails when
            vssm is imported.)
    """
    if torch.cuda.is_available() and torch.ops.torchvision._cuda_version() == -1:
        raise UserError(
            f"torch {torch.__version__} runs on the GPU, but torchvision {torchvision.__version__} has operators for "
            f"the CPU only: reinstall both from one place: pip install --force-reinstall torch torchvision"
        )


def at_least_float32(*tensors: Tensor) -> list[Tensor]:
    """Half-precision tensors in float32, others as they are."""
    return [tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor for tensor in tensors]


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Indices of the boxes that are not covered by a better one, best first.

    Args:
        boxes: (boxes, 4), left, top, right, bottom.
        scores: (boxes,).
        iou_threshold: a box is removed if its intersection over union with a better one is above this.
        offset: 1 if right and bottom are the last pixel inside, 0 if they are edges.
    """
    boxes, scores = at_least_float32(boxes, scores)
    return torchvision.ops.nms(_as_edges(boxes, offset), scores, iou_threshold)


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Soft-NMS (arXiv 1704.04503): overlap with a better box lowers a box's score; below ``min_score`` it is removed.

    Args:
        boxes: (boxes, 4), left, top, right, bottom, on the CPU.
        scores: (boxes,).
        dets: (boxes, 5); the first rows are filled with the remaining boxes and their new scores.
        iou_threshold: the overlap from which methods 0 and 1 act.
        sigma: width of method 2.
        min_score: boxes with a lower score are removed, except the best.
        method: the factor of a score at overlap o: 0 for zero, 1 for ``1 - o``, 2 for ``exp(-o²/sigma)``.
        offset: as in `nms`.

    Returns:
        Indices of the remaining boxes, in the order in which they were chosen.
    """
    edges, left = _as_edges(boxes, offset), scores.clone()
    remaining = torch.arange(len(boxes))
    kept = []
    while len(remaining):
        best = left[remaining].argmax()
        chosen = remaining[best]
        dets[len(kept)] = torch.cat((boxes[chosen], left[chosen, None]))
        kept.append(chosen)
        remaining = torch.cat((remaining[:best], remaining[best + 1 :]))
        overlap = torchvision.ops.box_iou(edges[chosen, None], edges[remaining])[0]
        if method == 2:
            factor = torch.exp(-overlap.square() / sigma)
        else:
            lowered = 1 - overlap if method == 1 else torch.zeros_like(overlap)
            factor = torch.where(overlap >= iou_threshold, lowered, 1.0)
        left[remaining] *= factor
        remaining = remaining[left[remaining] >= min_score]
    return torch.stack(kept) if kept else remaining


def _as_edges(boxes: Tensor, offset: int) -> Tensor:
    """The same boxes with right and bottom as edges."""
    return boxes + boxes.new_tensor([0, 0, offset, offset])


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """RoIAlign (arXiv 1703.06870): means of bilinear samples in the cells of each region of interest.

    Args:
        input: (batch, channels, height, width).
        rois: (regions, 5), image of the batch, left, top, right, bottom in pixels of the image.
        output: (regions, channels, aligned_height, aligned_width), is filled.
        argmax_y: for maxima only.
        argmax_x: for maxima only.
        aligned_height: cells of a region.
        aligned_width: cells of a region.
        spatial_scale: pixels of the map per pixel of the image.
        sampling_ratio: samples along a side of a cell; 0 for as many as there are pixels.
        pool_mode: 1 for means; 0, maxima, is not in torchvision.
        aligned: whether coordinates are those of pixel centres.
    """
    _refuse_maxima(pool_mode)
    features, regions = at_least_float32(input, rois)
    size = aligned_height, aligned_width
    output.copy_(torch.ops.torchvision.roi_align(features, regions, spatial_scale, *size, sampling_ratio, aligned))


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Gradient of `roi_align_forward`: fills ``grad_input`` from ``grad_output``."""
    _refuse_maxima(pool_mode)
    gradient, regions = at_least_float32(grad_output, rois)
    sizes = aligned_height, aligned_width, *grad_input.shape
    backward = torch.ops.torchvision._roi_align_backward
    grad_input.copy_(backward(gradient, regions, spatial_scale, *sizes, sampling_ratio, aligned))


def _refuse_maxima(pool_mode: int) -> None:
    if pool_mode == 0:
        _missing_operator("roi_align with pool_mode='max'")()


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Focal loss (arXiv 1708.02002) of independent classes.

    Args:
        input: (samples, classes), logits.
        target: (samples,), class indices; other numbers (as a rule that of the classes) stand for background.
        weight: (classes,), factor to the losses of the samples of a class; empty for none.
        output: (samples, classes), is filled.
        gamma: how much less well-classified samples count.
        alpha: weight of the target class; other classes have 1 - alpha.
    """
    (logits,) = at_least_float32(input)
    log_p, log_not_p = _log_probabilities(logits)
    loss = torch.where(
        _is_target(logits, target),
        -alpha * (gamma * log_not_p).exp() * log_p,
        -(1 - alpha) * (gamma * log_p).exp() * log_not_p,
    )
    output.copy_(loss * _sample_weights(weight, target))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Fills ``grad_input`` with the derivative of each value of `sigmoid_focal_loss_forward` by its logit."""
    (logits,) = at_least_float32(input)
    log_p, log_not_p = _log_probabilities(logits)
    p, not_p = log_p.exp(), log_not_p.exp()
    gradient = torch.where(
        _is_target(logits, target),
        -alpha * (gamma * log_not_p).exp() * (not_p - gamma * p * log_p),
        -(1 - alpha) * (gamma * log_p).exp() * (gamma * not_p * log_not_p - p),
    )
    grad_input.copy_(gradient * _sample_weights(weight, target))


def _log_probabilities(logits: Tensor) -> tuple[Tensor, Tensor]:
    """log p and log (1 - p), accurate also where p rounds to 0 or 1."""
    return torch.nn.functional.logsigmoid(logits), torch.nn.functional.logsigmoid(-logits)


def _is_target(logits: Tensor, target: Tensor) -> Tensor:
    return torch.arange(logits.shape[1], device=target.device) == target[:, None]


def _sample_weights(weight: Tensor, target: Tensor) -> Tensor | float:
    """(samples, 1): the weight of each sample's class; background has 1."""
    if not len(weight):
        return 1.0
    foreground = (target >= 0) & (target < len(weight))
    return torch.where(foreground, weight[target.clamp(0, len(weight) - 1)], 1.0)[:, None]


def softmax_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Focal loss of exclusive classes, from probabilities.

    Args:
        input: (samples, classes), probabilities.
        target: (samples,), class indices; a negative one has no loss.
        weight: (classes,) as in `sigmoid_focal_loss_forward`.
        output: (samples,), is filled.
        gamma: as in `sigmoid_focal_loss_forward`.
        alpha: factor to all losses.
    """
    p, log_p = _target_probability(input, target)
    loss = -alpha * (1 - p) ** gamma * log_p * (target >= 0)
    output.copy_((loss[:, None] * _sample_weights(weight, target))[:, 0])


def softmax_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, buff: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Fills ``grad_input`` (samples, classes) with the derivative of the loss by the logits; ``buff`` is not needed."""
    p, log_p = _target_probability(input, target)
    slope = alpha * (gamma * (1 - p) ** (gamma - 1) * p * log_p - (1 - p) ** gamma) * (target >= 0)
    gradient = slope[:, None] * (_is_target(input, target).to(p) - input)
    grad_input.copy_(gradient * _sample_weights(weight, target))


def _target_probability(probabilities: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    (probabilities,) = at_least_float32(probabilities)
    p = probabilities.gather(1, target.clamp(min=0)[:, None])[:, 0]
    return p, p.clamp(min=torch.finfo(p.dtype).tiny).log()


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    **geometry: int,
) -> None:
    """Deformable convolution with modulation (arXiv 1811.11168): fills ``output``; ``ones, columns`` are not needed."""
    tensors = at_least_float32(input, weight, offset, mask, _bias(bias, weight))
    output.copy_(torch.ops.torchvision.deform_conv2d(*tensors, *_geometry(**geometry), True))


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    **geometry: int,
) -> None:
    """Gradients of `modulated_deform_conv_forward`: fills those tensors that are not empty."""
    tensors = at_least_float32(grad_output, input, weight, offset, mask, _bias(bias, weight))
    gradients = torch.ops.torchvision._deform_conv2d_backward(*tensors, *_geometry(**geometry), True)
    receivers = (grad_input, grad_weight, grad_offset, grad_mask, grad_bias)
    for receiver, gradient in zip(receivers, gradients, strict=True):
        if receiver.numel():
            receiver.copy_(gradient)


def _bias(bias: Tensor, weight: Tensor) -> Tensor:
    """mmcv passes an empty tensor for no bias."""
    return bias if len(bias) else weight.new_zeros(len(weight))


def _geometry(
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> tuple[int, ...]:
    """mmcv's arguments in torchvision's order."""
    return stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, group, deformable_group


def get_compiler_version() -> str:
    """For mmcv's report on its environment, as the next."""
    return f"none (operators of torchvision {torchvision.__version__})"


def get_compiling_cuda_version() -> str:
    return str(torch.version.cuda or "not available")


OPERATORS = {
    operator.__name__: operator
    for operator in (
        nms,
        softnms,
        roi_align_forward,
        roi_align_backward,
        sigmoid_focal_loss_forward,
        sigmoid_focal_loss_backward,
        softmax_focal_loss_forward,
        softmax_focal_loss_backward,
        modulated_deform_conv_forward,
        modulated_deform_conv_backward,
        get_compiler_version,
        get_compiling_cuda_version,
    )
}
