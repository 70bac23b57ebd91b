"""Why an attention module cannot be found, scored or removed. Each message names a remedy."""

from __future__ import annotations


class AttentionError(ValueError):
    """An attention module of a model cannot be treated as asked."""


class NoSites(AttentionError):
    """The loss was computed without any softmax(q k^T) v that could be found."""


class InlineAttention(AttentionError):
    """The attention is not in a module of its own below the residual sum."""


class NoResidual(AttentionError):
    """Nothing is added to the output of the attention, so that without it the input is lost."""


class TooCoarse(AttentionError):
    """The module computes more than attention, or its output has a shape of its own."""


class SharedOutput(AttentionError):
    """Other modules use what the attention module computes besides its residual branch."""


class SharedModule(AttentionError):
    """One module is called several times, and not every call can be removed."""


class Stochastic(AttentionError):
    """Two forward passes in eval() differ although torch's random numbers are fixed."""


class NotDifferentiable(AttentionError):
    """The loss has no gradient by the parameters of the model."""


class NotPerSample(AttentionError):
    """The loss is not one value for each sample."""


class UnknownSite(AttentionError):
    """The model has no site of this name."""


class AttentionWarning(UserWarning):
    """A pruned model, or a score, that may not be what was wanted."""


class InputLost(AttentionWarning):
    """The output of the pruned model does not depend on its input."""


class DeadParameters(AttentionWarning):
    """Parameters of the pruned model no longer take part in the loss."""
