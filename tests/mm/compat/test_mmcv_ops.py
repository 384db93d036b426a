"""mmcv's operators from torchvision's, against plain loops and formulas."""

import itertools
import math
from pathlib import Path

import pytest
import torch
from forked import run_code
from torch import Tensor
from torch.nn import functional

from vssm.mm.compat import mmcv_ops

mmcv_ops.install()
ops = pytest.importorskip("mmcv.ops")

ROOT = Path(__file__).resolve().parents[3]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def random_boxes(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Boxes of whole pixels, crowded enough to overlap, with different scores."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.randint(0, 30, (count, 2), generator=generator)
    sizes = torch.randint(4, 20, (count, 2), generator=generator)
    scores = torch.randperm(count, generator=generator).float().add(1).div(count + 1)
    return torch.cat((corners, corners + sizes), 1).float(), scores


def plain_iou(one: Tensor, other: Tensor, offset: int) -> float:
    def extent(low: float, high: float) -> float:
        return max(0.0, high - low + offset)

    def area(box: Tensor) -> float:
        return extent(float(box[0]), float(box[2])) * extent(float(box[1]), float(box[3]))

    low, high = torch.maximum(one[:2], other[:2]).tolist(), torch.minimum(one[2:], other[2:]).tolist()
    inter = extent(low[0], high[0]) * extent(low[1], high[1])
    return inter / (area(one) + area(other) - inter)


def plain_nms(boxes: Tensor, scores: Tensor, threshold: float, offset: int) -> list[int]:
    kept: list[int] = []
    for place in scores.argsort(descending=True).tolist():
        if all(plain_iou(boxes[better], boxes[place], offset) <= threshold for better in kept):
            kept.append(place)
    return kept


def plain_soft_nms(
    boxes: Tensor, scores: Tensor, method: str, threshold: float, sigma: float, min_score: float, offset: int
) -> list[tuple[int, float]]:
    left = dict(enumerate(scores.tolist()))
    kept = []
    while left:
        best = max(left, key=left.__getitem__)
        kept.append((best, left.pop(best)))
        for place in list(left):
            overlap = plain_iou(boxes[best], boxes[place], offset)
            if method == "gaussian":
                left[place] *= math.exp(-(overlap**2) / sigma)
            elif overlap >= threshold:
                left[place] *= 1 - overlap if method == "linear" else 0
            if left[place] < min_score:
                del left[place]
    return kept


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("threshold", "offset"), [(0.3, 0), (0.3, 1), (0.7, 0)])
def test_nms(device, threshold, offset):
    boxes, scores = random_boxes(60)
    expected = plain_nms(boxes, scores, threshold, offset)
    assert 3 < len(expected) < 60
    dets, places = ops.nms(boxes.to(device), scores.to(device), threshold, offset)
    assert places.tolist() == expected
    torch.testing.assert_close(dets.cpu(), torch.cat((boxes, scores[:, None]), 1)[expected])


def test_nms_of_nothing_and_with_limits():
    boxes, scores = random_boxes(60)
    assert ops.nms(boxes[:0], scores[:0], 0.5)[1].tolist() == []
    expected = [place for place in plain_nms(boxes, scores, 0.3, 0) if scores[place] > 0.4]
    assert ops.nms(boxes, scores, 0.3, score_threshold=0.4)[1].tolist() == expected
    assert ops.nms(boxes, scores, 0.3, max_num=2)[1].tolist() == expected[:2]


def test_nms_in_half_precision():
    boxes, scores = random_boxes(60)
    scores = scores.bfloat16()  # whole pixels below 64 are exact
    dets, places = ops.nms(boxes.bfloat16(), scores, 0.3)
    assert dets.dtype == torch.bfloat16
    assert set(places.tolist()) == set(ops.nms(boxes, scores.float(), 0.3)[1].tolist())


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("method", ["naive", "linear", "gaussian"])
def test_soft_nms(method, offset):
    boxes, scores = random_boxes(40)
    expected = plain_soft_nms(boxes, scores, method, 0.3, 0.5, 0.05, offset)
    assert len(expected) < 40
    dets, places = ops.soft_nms(boxes, scores, 0.3, 0.5, 0.05, method, offset)
    assert places.tolist() == [place for place, _ in expected]
    torch.testing.assert_close(dets[:, :4], boxes[places])
    torch.testing.assert_close(dets[:, 4], torch.tensor([score for _, score in expected]))


def test_soft_nms_keeps_the_best_and_takes_nothing():
    boxes, scores = random_boxes(5)
    assert ops.soft_nms(boxes, scores, min_score=2.0)[1].tolist() == [int(scores.argmax())]
    dets, places = ops.soft_nms(boxes[:0], scores[:0])
    assert dets.shape == (0, 5) and places.tolist() == []


@pytest.mark.parametrize("split_thr", [10000, 10])
def test_batched_nms_keeps_classes_apart(split_thr):
    boxes, scores = random_boxes(60)
    classes = torch.arange(60) % 3
    expected = []
    for number in range(3):
        own = (classes == number).nonzero()[:, 0]
        expected += own[plain_nms(boxes[own], scores[own], 0.43, 0)].tolist()
    expected.sort(key=lambda place: -scores[place])
    dets, places = ops.batched_nms(
        boxes, scores, classes, {"type": "nms", "iou_threshold": 0.43, "split_thr": split_thr}
    )
    assert places.tolist() == expected
    torch.testing.assert_close(dets[:, 4], scores[expected])
    assert set(plain_nms(boxes, scores, 0.43, 0)) == set(
        ops.batched_nms(boxes, scores, classes, {"type": "nms", "iou_threshold": 0.43}, class_agnostic=True)[1].tolist()
    )


def plain_bilinear(image: Tensor, y: float, x: float) -> Tensor:
    """image (channels, height, width); zero beyond one pixel outside, and the border value up to there."""
    height, width = image.shape[-2:]
    if not (-1 <= y <= height and -1 <= x <= width):
        return image.new_zeros(len(image))
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    upper = image[:, top, left] * (1 - (x - left)) + image[:, top, right] * (x - left)
    lower = image[:, bottom, left] * (1 - (x - left)) + image[:, bottom, right] * (x - left)
    return upper * (1 - (y - top)) + lower * (y - top)


def plain_roi_align(
    features: Tensor, rois: Tensor, size: tuple[int, int], scale: float, sampling_ratio: int, aligned: bool
) -> Tensor:
    regions = []
    for index, *corners in rois.tolist():
        left, top, right, bottom = (corner * scale - 0.5 * aligned for corner in corners)
        height, width = bottom - top, right - left
        if not aligned:
            height, width = max(height, 1.0), max(width, 1.0)
        cell = height / size[0], width / size[1]
        samples = [sampling_ratio or math.ceil(length) for length in cell]
        cells = []
        for row, column in itertools.product(range(size[0]), range(size[1])):
            values = [
                plain_bilinear(
                    features[int(index)],
                    top + cell[0] * (row + (i + 0.5) / samples[0]),
                    left + cell[1] * (column + (j + 0.5) / samples[1]),
                )
                for i, j in itertools.product(range(samples[0]), range(samples[1]))
            ]
            cells.append(sum(values) / len(values))
        regions.append(torch.stack(cells, -1).unflatten(-1, size))
    return torch.stack(regions)


ROIS = [[0, 4.0, 2.5, 30.0, 21.0], [1, 0.0, 0.0, 12.3, 9.1], [0, 20.0, 10.0, 47.9, 39.0], [1, -3.0, 5.0, 3.0, 6.0]]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_roi_align_and_its_gradient(device, sampling_ratio, aligned):
    torch.manual_seed(0)
    features = torch.randn(2, 3, 10, 12, dtype=torch.double, requires_grad=True)
    rois = torch.tensor(ROIS, dtype=torch.double)
    weights = torch.randn(4, 3, 2, 3, dtype=torch.double)
    expected = plain_roi_align(features, rois, (2, 3), 0.25, sampling_ratio, aligned)
    (gradient,) = torch.autograd.grad((expected * weights).sum(), features)
    moved = features.detach().to(device).requires_grad_()
    found = ops.RoIAlign((2, 3), 0.25, sampling_ratio, "avg", aligned)(moved, rois.to(device))
    torch.testing.assert_close(found.cpu(), expected)
    (found.cpu() * weights).sum().backward()
    torch.testing.assert_close(moved.grad.cpu(), gradient)


def test_roi_align_in_half_precision():
    torch.manual_seed(0)
    features = torch.randn(2, 3, 10, 12).bfloat16().requires_grad_()
    rois = torch.tensor(ROIS)[:1]
    found = ops.roi_align(features, rois, (2, 3), 0.25, 2, "avg", True)
    assert found.dtype == torch.bfloat16
    expected = plain_roi_align(features.detach().float(), rois, (2, 3), 0.25, 2, True)
    torch.testing.assert_close(found.float(), expected, rtol=2**-8, atol=1e-6)  # a rounding to 8 bits
    found.sum().backward()
    assert features.grad.float().sum() == pytest.approx(18, rel=0.01)  # every cell is a mean of samples inside


def plain_sigmoid_focal_loss(logits: Tensor, target: Tensor, gamma: float, alpha: float) -> Tensor:
    rows = []
    for row, label in zip(logits, target.tolist(), strict=True):
        values = []
        for number, logit in enumerate(row):
            p = 1 / (1 + torch.exp(-logit))
            if number == label:
                values.append(-alpha * (1 - p) ** gamma * torch.log(p))
            else:
                values.append(-(1 - alpha) * p**gamma * torch.log(1 - p))
        rows.append(torch.stack(values))
    return torch.stack(rows)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("gamma", "alpha"), [(2.0, 0.25), (0.0, 0.5), (1.5, 0.9)])
@pytest.mark.parametrize("weighted", [False, True])
def test_sigmoid_focal_loss_and_its_gradient(device, gamma, alpha, weighted):
    torch.manual_seed(0)
    logits = (3 * torch.randn(7, 4, dtype=torch.double)).requires_grad_()
    target = torch.tensor([0, 1, 2, 3, 4, 4, -1])  # 4 and -1 are background
    weight = torch.tensor([0.5, 1.0, 2.0, 3.0], dtype=torch.double) if weighted else None
    factors = torch.ones(7, 1) if weight is None else torch.tensor([0.5, 1, 2, 3, 1, 1, 1])[:, None]
    expected = plain_sigmoid_focal_loss(logits, target, gamma, alpha) * factors
    (gradient,) = torch.autograd.grad(expected.sum() / 7, logits)
    moved = logits.detach().to(device).requires_grad_()
    weight = weight if weight is None else weight.to(device)
    each = ops.sigmoid_focal_loss(moved, target.to(device), gamma, alpha, weight, "none")
    torch.testing.assert_close(each.cpu(), expected)
    ops.sigmoid_focal_loss(moved, target.to(device), gamma, alpha, weight, "mean").backward()
    torch.testing.assert_close(moved.grad.cpu(), gradient)


def test_sigmoid_focal_loss_of_extreme_logits():
    logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0]], requires_grad=True)
    loss = ops.sigmoid_focal_loss(logits, torch.tensor([0, 0]), 2.0, 0.25, None, "none")
    torch.testing.assert_close(loss, torch.tensor([[0.0, 0.0], [50.0, 150.0]]))
    loss.sum().backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[0.0, 0.0], [-0.25, 0.75]]))


@pytest.mark.parametrize("weighted", [False, True])
def test_softmax_focal_loss_and_its_gradient(weighted):
    torch.manual_seed(0)
    logits = torch.randn(5, 4, dtype=torch.double, requires_grad=True)
    target = torch.tensor([0, 3, 2, -1, 1])
    weight = torch.tensor([0.5, 1.0, 2.0, 3.0], dtype=torch.double) if weighted else None
    p = functional.softmax(logits, -1)[torch.arange(5), target.clamp(min=0)]
    factor = torch.tensor([1.0, 1, 1, 0, 1]) * (1 if weight is None else weight[target])
    expected = -0.25 * (1 - p) ** 2 * torch.log(p) * factor
    (gradient,) = torch.autograd.grad(expected.sum(), logits)
    found = logits.detach().requires_grad_()
    # The compiled operators exist for the GPU only; ours are for both.
    each = ops.softmax_focal_loss(found, target, 2.0, 0.25, weight, "none")
    torch.testing.assert_close(each, expected)
    # mmcv's own gradient of "none" does not work.
    ops.softmax_focal_loss(found, target, 2.0, 0.25, weight, "sum").backward()
    torch.testing.assert_close(found.grad, gradient)


def plain_deform_conv(features: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Kernel 3, stride 2, padding 1, dilation 1; zero outside."""

    def sample(image: Tensor, y: Tensor, x: Tensor) -> Tensor:
        top, left = math.floor(y.detach()), math.floor(x.detach())
        value = image.new_zeros(len(image))
        for row, column in itertools.product((top, top + 1), (left, left + 1)):
            if 0 <= row < image.shape[1] and 0 <= column < image.shape[2]:
                value = value + image[:, row, column] * (1 - (y - row).abs()) * (1 - (x - column).abs())
        return value

    rows = []
    for row in range(offset.shape[2]):
        cells = []
        for column in range(offset.shape[3]):
            total = bias
            for tap in range(9):
                y = row * 2 - 1 + tap // 3 + offset[0, 2 * tap, row, column]
                x = column * 2 - 1 + tap % 3 + offset[0, 2 * tap + 1, row, column]
                value = sample(features[0], y, x) * mask[0, tap, row, column]
                total = total + weight[:, :, tap // 3, tap % 3] @ value
            cells.append(total)
        rows.append(torch.stack(cells, -1))
    return torch.stack(rows, -2)[None]


def test_modulated_deformable_convolution_and_its_gradients():
    torch.manual_seed(0)
    shapes = {"features": (1, 4, 5, 6), "offset": (1, 18, 3, 3), "mask": (1, 9, 3, 3), "weight": (2, 4, 3, 3)}
    tensors = {name: torch.randn(shape, dtype=torch.double, requires_grad=True) for name, shape in shapes.items()}
    bias = torch.randn(2, dtype=torch.double, requires_grad=True)
    given = (*tensors.values(), bias)
    expected = plain_deform_conv(*given)
    found = ops.modulated_deform_conv2d(*given, 2, 1)
    torch.testing.assert_close(found, expected)
    direction = torch.randn_like(expected)
    gradients = torch.autograd.grad((expected * direction).sum(), given)
    for gradient, value in zip(torch.autograd.grad((found * direction).sum(), given), gradients, strict=True):
        torch.testing.assert_close(gradient, value)
    without = ops.modulated_deform_conv2d(*tensors.values(), None, 2, 1)
    torch.testing.assert_close(without, expected - bias[:, None, None])
    torch.autograd.grad(without.sum(), list(tensors.values()))


def test_other_operators_name_the_package_when_called():
    with pytest.raises(mmcv_ops.MissingOperatorError, match=r"'roi_pool_forward'.*mmcv==2.1.0"):
        ops.roi_pool(torch.zeros(1, 1, 4, 4), torch.tensor([[0.0, 0, 0, 2, 2]]), 2)
    with pytest.raises(mmcv_ops.MissingOperatorError, match="pool_mode='max'"):
        ops.RoIAlign(2, pool_mode="max")(torch.zeros(1, 1, 4, 4), torch.tensor([[0.0, 0, 0, 2, 2]]))


def test_compiled_operators_come_first(tmp_path):
    """In a new process, with a stand-in for the compiled mmcv."""
    (tmp_path / "mmcv").mkdir()
    (tmp_path / "mmcv/__init__.py").touch()
    (tmp_path / "mmcv/_ext.py").write_text("compiled = True\n")
    code = "import vssm.mm, mmcv._ext; assert mmcv._ext.compiled and not hasattr(mmcv._ext, 'nms')"
    run_code(f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {code}", tmp_path)


def test_classification_needs_no_mm_packages(tmp_path):
    """In a new process, with the packages of the extra `train` only."""
    code = f"""
import sys
sys.modules.update(dict.fromkeys(("mmcv", "mmdet", "mmseg", "pycocotools", "ftfy", "regex")))  # any import now fails
import vssm.cli.training, vssm.mm.tasks.scenes
from vssm.mm.runtime.config import ConfigError, load_config
try:
    load_config({str(ROOT / "configs/detection/vmamba/mask_rcnn_vmamba_tiny_s1l8_1x_coco.py")!r})
except ConfigError as error:
    print(error)
"""
    assert "pip install 'vssm[train,mm]'" in run_code(code, tmp_path)


def test_a_torchvision_for_the_cpu_beside_a_gpu_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops.torchvision, "_cuda_version", lambda: -1, raising=False)
    with pytest.raises(mmcv_ops.UserError, match="reinstall both"):
        mmcv_ops.check_torchvision()
