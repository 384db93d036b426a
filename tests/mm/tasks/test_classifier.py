"""The classifier, its preprocessor and its metric."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from families import ROOT

from vssm.errors import ConfigError
from vssm.inference.create import create_model
from vssm.mm.runtime.config import load_config
from vssm.mm.runtime.metrics import TopAccuracy
from vssm.mm.tasks.classifier import ClassificationPreprocessor, ImageClassifier, Teacher
from vssm.mm.tasks.runner import TaskRunner
from vssm.models import CheckpointError
from vssm.nn import SelectiveScan
from vssm.scan import order as order_module

TINY = {"name": "test_vit", "num_classes": 4, "img_size": 32}


def test_losses():
    classifier = ImageClassifier(TINY, label_smoothing=0.1).eval()
    images, labels = torch.randn(3, 3, 32, 32), torch.tensor([0, 1, 3])
    logits = classifier(images)
    smooth = torch.nn.functional.one_hot(labels, 4) * 0.9 + 0.1 / 4
    expected = -(smooth * logits.log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(classifier(images, labels, mode="loss")["loss"], expected)
    torch.testing.assert_close(classifier(images, smooth, mode="loss")["loss"], expected)
    predictions = classifier(images, labels, ["a", "b", "c"], mode="predict")
    torch.testing.assert_close(torch.stack([p["scores"] for p in predictions]), logits.double().softmax(-1))


def test_a_training_starts_from_the_weights_of_the_backbone(make_runner):
    """test_vit has a method init_weights, which mmengine would call."""
    runner = make_runner(optim_wrapper__optimizer__lr=0.0, train_cfg__max_epochs=1)
    before = {name: value.clone() for name, value in runner.model.state_dict().items()}
    runner.train()
    for name, value in runner.model.state_dict().items():
        assert torch.equal(value, before[name]), name


SNAKE = """
import torch
from vssm.scan import scan_order

@scan_order
def snake_of_a_config(height, width):
    tokens = torch.arange(height * width).view(height, width)
    tokens[1::2] = tokens[1::2].flip(1)
    return tokens.view(1, -1)
"""


def test_a_config_trains_along_any_order(config_file, tmp_path, monkeypatch):
    """A list of names, one of them of an order that the config imports."""
    (tmp_path / "my_orders_of_a_test.py").write_text(SNAKE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(order_module, "_registry", dict(order_module._registry))  # the order vanishes with the test
    text = config_file.read_text()
    text += "custom_imports = dict(imports=['vssm.mm', 'my_orders_of_a_test'])\n"
    text += "model['backbone'] = dict(name='vmamba_tiny', num_classes=10, dims=(16, 24),\n"
    text += "    depths=(1, 1), scan_order=['snake_of_a_config', 'windows(2)'])\n"
    config_file.write_text(text)
    config = load_config(config_file, {"work_dir": str(tmp_path / "work"), "experiment_name": "any_order"})
    runner = TaskRunner.from_cfg(config)
    runner.train()
    scans = [module for module in runner.model.modules() if isinstance(module, SelectiveScan)]
    assert {scan.directions for scan in scans} == {3}
    saved = torch.load(tmp_path / "work/epoch_2.pth", weights_only=True)
    assert saved["meta"]["backbone"]["scan_order"] == ["snake_of_a_config", "windows(2)"]


@pytest.mark.parametrize(
    ("backbone", "told"),
    [
        ({"name": "vim_tyni"}, "no model called 'vim_tyni'; did you mean .*vim_tiny"),
        ({"name": "test_vit", "drop_pth_rate": 0.1}, "drop_pth_rate"),
        ({"name": "vim_tiny", "depht": 2}, "depht"),
        ({"name": "vim_tiny", "scan_order": "hilbrt"}, "backbone.scan_order: no scan order is named 'hilbrt'"),
        ({"name": "vim_tiny", "scan_order": []}, "backbone.scan_order: .* is no scan order; expected a name"),
    ],
)
def test_misspelt_backbones(backbone, told):
    with pytest.raises(ConfigError, match=told):
        ImageClassifier(backbone)


def test_the_old_spelling_of_a_models_name():
    with pytest.warns(FutureWarning, match="model.backbone.model_name is now model.backbone.name"):
        classifier = ImageClassifier({"model_name": "test_vit", "num_classes": 4, "img_size": 32})
    assert classifier.arguments == TINY
    with pytest.raises(ConfigError, match="has a name, 'test_vit', and a model_name, 'vim_tiny'"):
        ImageClassifier(TINY | {"model_name": "vim_tiny"})
    with pytest.raises(ConfigError, match=r"model\.backbone\.name is None"):
        ImageClassifier({"num_classes": 4})


def test_mixup_of_other_classes_is_refused():
    mixup = {"type": "ClassificationPreprocessor", "mixup": {"mixup_alpha": 1.0, "num_classes": 7}}
    with pytest.raises(ConfigError, match="labels of 7 classes, but the model has 4"):
        ImageClassifier(TINY, data_preprocessor=mixup)


STUDENT = {
    "name": "groupmamba_tiny",
    "num_classes": 10,
    "dims": (16, 16, 16, 16),
    "depths": (1, 1, 1, 1),
    "stem_width": 8,
}


@pytest.fixture
def teacher(tmp_path):
    """A file of weights, as the argument of a classifier, and the model with them."""
    torch.manual_seed(1)
    model = create_model(**TINY | {"num_classes": 10}).eval()
    torch.save(model.state_dict(), tmp_path / "teacher.pth")
    return {**TINY, "num_classes": 10, "checkpoint": str(tmp_path / "teacher.pth")}, model


def test_half_of_the_loss_is_the_teachers(teacher):
    """On the images that the student sees, mixed or not; the teacher is no part of what is trained and saved."""
    arguments, model = teacher
    torch.manual_seed(0)
    classifier = ImageClassifier(STUDENT, teacher=arguments)
    names = set(classifier.state_dict())
    classifier.init_weights()
    copied = deepcopy(classifier)
    assert copied.teacher is classifier.teacher
    assert set(classifier.state_dict()) == names == {f"backbone.{name}" for name in classifier.backbone.state_dict()}

    images, mixed = torch.randn(3, 3, 32, 32), torch.rand(3, 10)
    logits, distilled = copied.train().backbone(images)
    said = model(images).argmax(1)
    losses = classifier.train()(images, mixed, mode="loss")
    expected = -(mixed * logits.log_softmax(-1)).sum(-1).mean() / 2
    torch.testing.assert_close(losses["loss_labels"], expected)
    torch.testing.assert_close(losses["loss_teacher"], torch.nn.functional.cross_entropy(distilled, said) / 2)
    total, logged = classifier.parse_losses(losses)
    torch.testing.assert_close(total, sum(losses.values()))
    total.backward()
    assert all(parameter.grad is not None for parameter in classifier.parameters())
    assert all(parameter.grad is None for parameter in classifier.teacher.model.parameters())
    assert logged["loss_teacher"] > 0
    scores = classifier.eval()(images, said, mode="predict")
    assert scores[0]["scores"].shape == (10,)


def test_a_training_with_a_teacher(make_runner, teacher):
    arguments, _ = teacher
    student = {**STUDENT, "_delete_": True}
    runner = make_runner(model__backbone=student, model__teacher=arguments, train_cfg__max_epochs=1)
    runner.train()
    assert runner.model.teacher.model is not None
    assert not any(name.startswith("teacher") for name in runner.model.state_dict())


@pytest.mark.parametrize(
    ("student", "change", "told"),
    [
        (TINY, {}, "'test_vit' has no distillation head"),
        (STUDENT, {"name": "test_vitt"}, "no model called 'test_vitt'"),
        (STUDENT, {"num_classes": 7}, r"teacher.pth does not fit .*misshapen \(head"),
        (STUDENT, {"checkpoint": "nowhere.pth"}, "nowhere.pth"),
        (STUDENT, {"checkpoint": None}, r"teacher test_vit could not be downloaded .*model.teacher.checkpoint=FILE"),
    ],
)
def test_teachers_that_cannot_teach(student, change, told, teacher):
    with pytest.raises((ConfigError, CheckpointError), match=told):
        ImageClassifier(student, teacher=teacher[0] | change).init_weights()


def test_a_teacher_of_other_classes_is_refused(monkeypatch, teacher):
    """And not given a head without training, as timm would."""
    monkeypatch.setattr("vssm.mm.tasks.classifier.create_model", lambda **arguments: teacher[1])
    with pytest.raises(ConfigError, match="test_vit knows 1000 classes and the model has 10"):
        Teacher({"name": "test_vit"}, 10).load(torch.device("cpu"))


def test_a_teachers_classes_go_by_their_names(make_runner, teacher):
    """Its file may have them in another order than the data; labels were those of other classes then."""
    arguments, model = teacher
    names = make_runner().train_loop.dataloader.dataset.metainfo["classes"]
    weights, file = torch.load(arguments["checkpoint"]), Path(arguments["checkpoint"])
    labels = torch.tensor(range(9, -1, -1))
    for own in (names[::-1], [*names[1:], "bee"]):
        torch.save({"state_dict": weights, "meta": {"classes": own}}, file)
        runner = make_runner(model__backbone={**STUDENT, "_delete_": True}, model__teacher=arguments)
        assert len(runner.train_loop.dataloader)
        if "bee" in own:
            with pytest.raises(ConfigError, match=r"knows the classes .*: give a teacher of the same classes"):
                runner.model.init_weights()
        else:
            runner.model.init_weights()
            images = torch.randn(8, 3, 32, 32)
            assert runner.model.teacher(images).equal(labels[model(images).argmax(1)])


def test_a_teacher_of_images_normalised_otherwise_is_refused(make_runner, monkeypatch, teacher):
    """A quarter of timm's classifiers are; what they said of the student's images was worth less, without a word."""
    runner = make_runner(model__backbone={**STUDENT, "_delete_": True}, model__teacher={"name": "test_vit"})
    assert len(runner.train_loop.dataloader)
    monkeypatch.setattr("vssm.mm.tasks.classifier.create_model", lambda **arguments: teacher[1])
    usual = {"num_classes": 10, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    teacher[1].pretrained_cfg = usual
    runner.model.init_weights()
    teacher[1].pretrained_cfg = {**usual, "mean": (0.5, 0.5, 0.5)}
    with pytest.raises(ConfigError, match=r"images normalised with .*0\.5.*, and the student's are with .*0\.485"):
        runner.model.init_weights()


def test_a_published_recipe_with_a_teacher_is_built_without_its_weights():
    """They are read when a training begins, and not to evaluate or to count."""
    model = load_config(ROOT / "configs/classification/groupmamba/groupmamba_tiny_in1k.py").model
    classifier = ImageClassifier({**model.backbone, **STUDENT}, teacher=model.teacher)
    assert classifier.teacher.name.startswith("regnety_160") and classifier.teacher.model is None


def test_preprocessor_mixes_only_in_training():
    preprocessor = ClassificationPreprocessor(mixup={"mixup_alpha": 1.0, "num_classes": 4, "label_smoothing": 0.1})
    batch = {"inputs": torch.randn(4, 3, 8, 8), "label": torch.arange(4), "path": ["a"] * 4}
    assert preprocessor(dict(batch))["label"].equal(batch["label"])
    mixed = preprocessor({**batch, "inputs": batch["inputs"].clone()}, training=True)
    assert mixed["label"].shape == (4, 4)
    torch.testing.assert_close(mixed["label"].sum(-1), torch.ones(4))
    with pytest.raises(ConfigError, match="a batch has 3"):
        preprocessor({key: value[:3] for key, value in batch.items()}, training=True)


@pytest.mark.parametrize(
    ("size", "drop_last", "odd"), [(10, False, None), (31, False, 1), (31, True, 31), (6, True, None)]
)
def test_odd_batches_are_told_before_the_first_step(make_runner, size, drop_last, odd):
    """The last one ended a training after its first epoch."""
    mixup = {"type": "ClassificationPreprocessor", "mixup": {"mixup_alpha": 0.8, "num_classes": 10}}
    options = {"train_dataloader__batch_size": size, "train_dataloader__drop_last": drop_last}
    runner = make_runner(model__data_preprocessor=mixup, **options)  # 32 images
    if odd is None:
        assert len(runner.train_loop.dataloader)
        return
    with pytest.raises(ConfigError, match=f"mixup pairs the images of a batch, but a batch has {odd}: choose an even"):
        _ = runner.train_loop


def test_preprocessor_scales_bytes():
    preprocessor = ClassificationPreprocessor(mean=[0.5, 0.5, 0.5], std=[0.25, 0.25, 0.5])
    batch = {"inputs": torch.full((1, 3, 2, 2), 255, dtype=torch.uint8), "label": torch.tensor([0])}
    assert preprocessor(batch)["inputs"][0, :, 0, 0].tolist() == [2.0, 2.0, 1.0]
    with pytest.raises(ConfigError, match="mean and std together"):
        ClassificationPreprocessor(mean=[0.5])


def test_ties_and_nan_do_not_count_as_right():
    metric = TopAccuracy(topk=(1, 2))
    scores = [[0.4, 0.4, 0.2], [0.1, 0.2, 0.7], [float("nan")] * 3, [0.5, 0.3, 0.2]]
    metric.process({}, [{"scores": torch.tensor(row), "label": torch.tensor(0)} for row in scores])
    assert metric.evaluate(4) == {"accuracy/top1": 25.0, "accuracy/top2": 50.0}


@pytest.mark.parametrize("topk", [5, (), (0, 1), (1.5, 1), "15"], ids=str)
def test_ranks_are_whole_numbers(topk):
    with pytest.raises(ConfigError, match=r"TopAccuracy.topk is .*expected a list, each entry a whole number from 1"):
        TopAccuracy(topk=topk)


def test_a_rank_that_every_class_reaches_is_no_score():
    """The evaluation gave none, and said nothing."""
    metric = TopAccuracy(topk=(5,))
    metric.process({}, [{"scores": torch.rand(5), "label": torch.tensor(0)}])
    with pytest.raises(ConfigError, match=r"topk is \(5,\), and of 5 classes each is among the best 5"):
        metric.evaluate(1)


@pytest.mark.parametrize("logits", [[500.0, 1.0, 0.0, -1.0], [1.0, 3e-9, 2e-9, 1e-9]], ids=["far", "near"])
def test_ranks_are_those_of_the_logits(logits):
    """In float32 the scores were equal, which counts as wrong."""
    classifier = ImageClassifier({"name": "test_vit", "num_classes": 4, "img_size": 32})
    classifier.backbone.forward = lambda images: torch.tensor([logits])
    metric = TopAccuracy(topk=(2,))
    metric.process({}, classifier(torch.zeros(1, 3, 32, 32), torch.tensor([1]), mode="predict"))
    assert metric.evaluate(1) == {"accuracy/top2": 100.0}
