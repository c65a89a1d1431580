import keras
import pytest

from mrcnn_tf.layers.resnet import ResNet
from mrcnn_tf.weights.imagenet import load_imagenet

# That the copied weights give the features of keras.applications is shown in test_keras_models.py.


def test_download_that_fails(monkeypatch):
    def fail(**kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(keras.applications, "ResNet50", fail)
    backbone = ResNet(50, dialect="keras")
    backbone.build()
    with pytest.raises(
        OSError, match=r"ResNet50 could not be downloaded .*set model\.backbone\.weights=null"
    ):
        load_imagenet(backbone)


def test_backbones_without_such_weights():
    with pytest.raises(ValueError, match="not for depth 18 in dialect torchvision"):
        load_imagenet(ResNet(18))
