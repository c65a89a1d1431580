"""The box head and the mask head (Mask R-CNN, section 3; the FPN form of its figure 4, right)."""

from __future__ import annotations

import keras
import tensorflow as tf

from mrcnn_tf.layers.conv import Conv


@keras.saving.register_keras_serializable("mrcnn_tf")
class BoxHead(keras.layers.Layer):
    """3x3 convolutions (the papers have none), fully connected layers, then class scores and box deltas.

    Args:
        num_classes: K, foreground classes.
        units: of each fully connected layer.
        depth: how many of those.
        roi_size: height and width of the RoI features, in bins.
        class_agnostic: one set of deltas for all classes instead of one per class.
        conv_depth, conv_channels: how many 3x3 convolutions come first, and their width.
        norm: of these convolutions, see `Conv`.
    """

    def __init__(
        self,
        num_classes: int,
        units: int = 1024,
        depth: int = 2,
        roi_size: int = 7,
        class_agnostic: bool = False,
        conv_depth: int = 0,
        conv_channels: int = 256,
        norm: str | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_classes, self.units, self.depth, self.roi_size = num_classes, units, depth, roi_size
        self.class_agnostic, self.conv_channels, self.norm = class_agnostic, conv_channels, norm
        self.convs = [
            Conv(conv_channels, 3, norm=norm, relu=True, dtype=self.dtype_policy, name=f"conv{i + 1}")
            for i in range(conv_depth)
        ]

        policy = self.dtype_policy
        if policy.compute_dtype == "float16" and not tf.config.list_logical_devices("GPU"):
            # TensorFlow's float16 product with a bias takes hundreds of times as long on a CPU as float32's.
            policy = "float32"

        def dense(name: str, size: int, activation: str | None, start) -> keras.layers.Dense:
            return keras.layers.Dense(
                size, activation=activation, kernel_initializer=start, dtype=policy, name=name
            )

        self.hidden = [dense(f"fc{i + 1}", units, "relu", "he_uniform") for i in range(depth)]
        self.classes = dense("classes", num_classes + 1, None, keras.initializers.RandomNormal(stddev=0.01))
        self.deltas = dense(
            "deltas",
            4 * (1 if class_agnostic else num_classes),
            None,
            keras.initializers.RandomNormal(stddev=0.001),
        )

    def build(self, channels: int) -> None:
        """`channels`: of the RoI features."""
        for conv in self.convs:
            conv.build((None, None, None, channels))
            channels = self.conv_channels
        size = self.roi_size**2 * channels
        for layer in self.hidden:
            layer.build((None, None, size))
            size = self.units
        self.classes.build((None, None, size))
        self.deltas.build((None, None, size))
        self.built = True

    def call(self, features: tf.Tensor, training: bool = False) -> tuple[tf.Tensor, tf.Tensor]:
        """`[B, N, S, S, C]` -> class logits `[B, N, K + 1]`, background first, and deltas `[B, N, K or 1, 4]`.

        Both float32. `training`: for the norm.
        """
        b, n = tf.shape(features)[0], tf.shape(features)[1]
        s, c = features.shape[2], features.shape[4]
        x = tf.reshape(features, [-1, s, s, c])
        for conv in self.convs:
            x = conv(x, training=training)
        # [B * N, .] keeps matmul, bias and ReLU one fused op.
        x = tf.reshape(x, [-1, s * s * x.shape[-1]])
        for layer in self.hidden:
            x = layer(x)
        logits = tf.reshape(self.classes(x), [b, n, self.num_classes + 1])
        deltas = tf.reshape(self.deltas(x), [b, n, -1, 4])
        return tf.cast(logits, tf.float32), tf.cast(deltas, tf.float32)

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "units": self.units,
            "depth": self.depth,
            "roi_size": self.roi_size,
            "class_agnostic": self.class_agnostic,
            "conv_depth": len(self.convs),
            "conv_channels": self.conv_channels,
            "norm": self.norm,
        }


@keras.saving.register_keras_serializable("mrcnn_tf")
class MaskHead(keras.layers.Layer):
    """3x3 convolutions, a 2x2 deconvolution, and one mask per class or one for all.

    Args:
        num_classes: K, foreground classes.
        channels: of the convolutions and the deconvolution.
        depth: how many 3x3 convolutions.
        mask_size: height and width of the masks; the RoI features have half of it. 28 in the paper, or 56.
        class_agnostic: one mask for all classes.
        norm: of the 3x3 convolutions, see `Conv`.
    """

    def __init__(
        self,
        num_classes: int,
        channels: int = 256,
        depth: int = 4,
        mask_size: int = 28,
        class_agnostic: bool = False,
        norm: str | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if mask_size % 2 or mask_size < 4:
            raise ValueError(f"mask_size is {mask_size}; it must be even and at least 4")
        self.num_classes, self.channels, self.depth = num_classes, channels, depth
        self.mask_size, self.class_agnostic, self.norm = mask_size, class_agnostic, norm
        self.convs = [
            Conv(channels, 3, norm=norm, relu=True, dtype=self.dtype_policy, name=f"conv{i + 1}")
            for i in range(depth)
        ]
        # A 2x2 deconvolution of stride 2 has no overlap: it is a 1x1 convolution to four times the channels,
        # rearranged, and much faster so on a CPU.
        self.deconv = Conv(4 * channels, 1, relu=True, dtype=self.dtype_policy, name="deconv")

    @property
    def roi_size(self) -> int:
        """Height and width of the RoI features, in bins."""
        return self.mask_size // 2

    def build(self, channels: int) -> None:
        """`channels`: of the RoI features."""
        for layer in self.convs:
            layer.build((None, None, None, channels))
            channels = self.channels
        self.deconv.build((None, None, None, channels))
        count = 1 if self.class_agnostic else self.num_classes
        self.kernel = self.add_weight(
            name="kernel",
            shape=(count, self.channels),
            initializer=keras.initializers.RandomNormal(stddev=0.001),
            autocast=False,
        )
        self.bias = self.add_weight(name="bias", shape=(count,), initializer="zeros", autocast=False)
        self.built = True

    def call(self, features: tf.Tensor, classes: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Mask logits of one class per RoI.

        Only the wanted class is computed: with 80 classes the other 79 cost more than they are ever used.

        Args:
            features: `[B, N, S, S, C]`.
            classes: `[B, N]` integer from 1 to K; others are read as the nearest of these.
            training: for the norm.

        Returns:
            float32 `[B, N, 2 S, 2 S]`.
        """
        return self.predict(self.hidden(features, training), classes)

    def hidden(self, features: tf.Tensor, training: bool = False) -> tf.Tensor:
        """`[B, N, S, S, C]` -> what the 3x3 convolutions make of it, `[B, N, S, S, channels]`."""
        b, n = tf.shape(features)[0], tf.shape(features)[1]
        s, c = features.shape[2], features.shape[4]
        x = tf.reshape(features, [-1, s, s, c])
        for layer in self.convs:
            x = layer(x, training=training)
        return tf.reshape(x, [b, n, s, s, self.channels])

    def predict(self, hidden: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
        """`hidden [B, N, S, S, channels]` and `classes [B, N]` -> mask logits `[B, N, 2 S, 2 S]`."""
        b, n, s = tf.shape(hidden)[0], tf.shape(hidden)[1], hidden.shape[2]
        x = self.deconv(tf.reshape(hidden, [-1, s, s, self.channels]))
        row = (
            tf.zeros_like(classes)
            if self.class_agnostic
            else tf.clip_by_value(classes, 1, self.num_classes) - 1
        )
        row = tf.reshape(row, [-1])
        kernel = tf.cast(tf.gather(tf.convert_to_tensor(self.kernel), row), x.dtype)
        # The channels of the four places of a 2x2 cell stand side by side: one matrix product serves all four.
        x = tf.reshape(x, [-1, s * s * 4, self.channels])
        logits = tf.cast(tf.matmul(x, kernel[:, :, None])[..., 0], tf.float32)
        logits += tf.gather(tf.convert_to_tensor(self.bias), row)[:, None]
        logits = tf.transpose(tf.reshape(logits, [-1, s, s, 2, 2]), [0, 1, 3, 2, 4])
        return tf.reshape(logits, [b, n, 2 * s, 2 * s])

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "channels": self.channels,
            "depth": self.depth,
            "mask_size": self.mask_size,
            "class_agnostic": self.class_agnostic,
            "norm": self.norm,
        }


@keras.saving.register_keras_serializable("mrcnn_tf")
class RefiningMaskHead(MaskHead):
    """A mask head that also sees what the first mask head made of the same instance (MR R-CNN, section 3.3).

    The first head's hidden features F^- go through a 1x1 convolution and are added to the RoI features. Its kernel
    starts at zero: a head with a trained mask head's weights starts as that mask head.

    Args: those of `MaskHead`, and
        mask_flow: false leaves F^- out.
    """

    def __init__(self, num_classes: int, *, mask_flow: bool = True, **kwargs):
        super().__init__(num_classes, **kwargs)
        self.mask_flow = mask_flow

    def build(self, channels: int) -> None:
        """`channels`: of the RoI features."""
        super().build(channels)
        if self.mask_flow:
            self.flow = Conv(channels, 1, kernel_initializer="zeros", dtype=self.dtype_policy, name="flow")
            self.flow.build((None, None, None, self.channels))

    def call(  # type: ignore[override]
        self, features: tf.Tensor, previous: tf.Tensor, classes: tf.Tensor, training: bool = False
    ) -> tf.Tensor:
        """Mask logits of one class per RoI.

        Args:
            features: `[B, N, S, S, C]`.
            previous: F^-, `[B, N, S, S, channels]`, of `MaskHead.hidden`.
            classes, training: as for `MaskHead`.

        Returns:
            float32 `[B, N, 2 S, 2 S]`.
        """
        if self.mask_flow:
            s = previous.shape[2]
            flow = self.flow(tf.reshape(previous, [-1, s, s, self.channels]))
            features += tf.reshape(flow, tf.shape(features))
        return super().call(features, classes, training=training)

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return {**super().get_config(), "mask_flow": self.mask_flow}
