"""Settings small enough to build every model in a moment; several layers, so that sites differ."""

from spat.models.registry import Hyperparameters, Shape

SHAPE = Shape(lookback=24, horizon=12, channels=5, marks=4)
HYPER = Hyperparameters(
    d_model=16,
    d_ff=24,
    e_layers=3,
    d_layers=2,
    n_heads=4,
    patch_len=8,
    stride=4,
    label_len=12,
    moving_average=5,
    season=6,
    instance_norm=True,
)
