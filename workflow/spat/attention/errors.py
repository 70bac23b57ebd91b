"""Errors and warnings of finding, scoring and removing attention. Each message names a remedy."""

from __future__ import annotations


class AttentionError(ValueError):
    """Base class: an attention module of a model cannot be found, scored or removed."""


class NoSites(AttentionError):
    """No softmax(q k^T) v was found in the autograd graph of the loss."""


class InlineAttention(AttentionError):
    """The attention is not in a separate module below the residual sum."""


class NoResidual(AttentionError):
    """There is no residual connection around the attention; without it the input would be lost."""


class TooCoarse(AttentionError):
    """The module computes more than attention, or no input has the shape of its output."""


class SharedOutput(AttentionError):
    """Other modules use what the attention module computes besides its residual branch."""


class SharedModule(AttentionError):
    """One module is called several times, and not every call can be removed."""


class Stochastic(AttentionError):
    """Two forward passes in eval() differ although torch's random numbers are fixed."""


class NotDifferentiable(AttentionError):
    """The loss has no gradient with respect to the parameters of the model."""


class NotPerSample(AttentionError):
    """The loss is not one value for each sample."""


class UnknownSite(AttentionError):
    """The model has no site of this name."""


class AttentionWarning(UserWarning):
    """A pruned model or a score that may not be what the caller expects."""


class InputLost(AttentionWarning):
    """The output of the pruned model does not depend on its input."""


class DeadParameters(AttentionWarning):
    """Parameters of the pruned model no longer take part in the loss."""
