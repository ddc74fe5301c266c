"""credit and score_surrogate: score-function estimators for losses of samples that the caller drew.

For K samples h_1 to h_K of any model whose log-probabilities can be differentiated, such as token sequences of a language model,
a score-function estimator is

    ĝ = Σ_k weights_k d log P(h_k) / dθ,

and its weights, the credit of the samples, are a function of their K losses. `credit` returns the weights. `score_surrogate` puts
them on the log-probabilities, so that backward gives ĝ.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gradest.contract.estimator import State
from gradest.contract.score_function import ScoreFunction
from gradest.contract.target import Target
from gradest.discovery.registry import EstimatorSpec, registry
from gradest.errors import Incompatible, InvalidInput, InvalidOptions, PluginFault
from gradest.estimation.arguments import at_least_float32, first_non_finite
from gradest.estimation.ask_tell import check_state
from gradest.estimation.losses.repetition import refuse_moved_state
from gradest.estimation.second_derivative import DifferentiateOnce
from gradest.kernels import transformed

__all__ = ["credit", "credited_estimator", "score_surrogate"]


def credit(
    estimator: EstimatorSpec, loss: Tensor, state: State | None = None, features: Tensor | None = None
) -> tuple[Tensor, State]:
    """Return the weights with which an estimator multiplies the scores of K samples, given their losses.

        weights, state = gradest.credit("rloo", loss, state)            # loss [K, *batch], weights [K, *batch]
        surrogate = (weights * log_prob).sum(0)                         # its gradient is the estimate, [*batch]

    estimator: a score-function estimator, such as reinforce, rloo, vimco or grpo. It credits all K samples of the loss against
        each other, whatever its default number of samples is.
    loss: `[K, *batch]`, floating point and finite: the losses of K independent samples for each element of the batch. It is
        detached. float16 and bfloat16 are computed, and returned, as float32.
    state: what the previous call returned; None for the first call.
    features: what the estimator must know of the samples beside their losses, for those whose docstring names it: for nvil the
        inputs of its baseline, `[*batch, features]`; for opo the lengths of the sequences, `[K, *batch]`.

    Returns the weights, `[K, *batch]` in at least float32, and the state for the next call. The weights of an element of the
    batch depend on its own losses and features and on the state alone.

    Inside a transform of torch.func the values are not checked, because they cannot be read there, and nvil is refused, which
    learns by autograd. In compiled code the call breaks the graph.

    Raises Incompatible if the estimator is no ScoreFunction, or cannot run inside a transform of torch.func. Raises InvalidInput
    if the loss or the features have a wrong shape or dtype or are not finite, if the estimator cannot credit K samples, or if its
    option `samples` was given and is not K.

    >>> import torch, gradest
    >>> weights, state = gradest.credit("rloo", torch.tensor([1.0, 2.0, 6.0]))
    >>> weights  # (L_k - mean L) / (K - 1)
    tensor([-1.0000, -0.5000,  1.5000])
    """
    if torch.compiler.is_compiling():
        return _outside(credit, estimator, loss, state, features)
    refuse_moved_state("gradest.credit", state)
    wide = _check_loss(loss)
    return _credit(credited_estimator(estimator, wide.shape[0]), wide, state, features)


def score_surrogate(
    log_prob: Tensor,
    loss: Tensor,
    estimator: EstimatorSpec,
    state: State | None = None,
    features: Tensor | None = None,
    *,
    tokens: bool | None = None,
) -> tuple[Tensor, State]:
    """Return the estimate of the expected loss, `[*batch]`, whose gradient in `log_prob` is the estimator's weights.

        log_prob = model.log_prob(h)                                    # [K, *batch], h drawn from the model without a gradient
        value, state = gradest.score_surrogate(log_prob, loss, "rloo", state)
        value.mean().backward()

    log_prob: `[K, *batch]`, the log-probabilities of K independent samples; or `[K, *batch, T]`, those of the T tokens of each
        sample, given the tokens before. Those of padding are to be 0: `log_prob.masked_fill(padding, 0)`.
    loss: `[K, *batch]`; or `[K, *batch, T]`, the part of the loss that is due at each token. It may have a gradient of its own,
        which it receives through the value as ever.
    estimator, state, features: as for `credit`.
    tokens: whether the last dim of `log_prob` is that of tokens. None infers it: it is if `log_prob` has one dim more than the
        loss, or if both have the same shape and at least three dims. Say True for `[K, T]`, and False for two dims of batch.

    The value is the estimator's `combine` of the losses, by default their mean over K; losses of tokens are summed first. What
    multiplies the score of a sample is its weight by `credit`:

    - A loss `[K, *batch]` gives every token of a sample the sample's weight.
    - Losses of tokens give each token its cost-to-go, the sum of the losses from that token on: a loss that was due before
      cannot depend on the token. The costs-to-go of the K samples are credited token by token, with features of each token, so
      an estimator without bias keeps none. An estimator of another quantity of several samples, such as vimco, is refused: its
      gradient is that of the total loss, and with costs-to-go it would be biased.

    Returns the value, in at least float32, and the state for the next call. The gradient of `log_prob` is an estimate that holds
    for these samples; differentiating it again would give nothing that estimates a second derivative, so it raises RuntimeError.

    Raises Incompatible for losses of tokens that the estimator cannot credit, InvalidInput if the shapes do not fit or `log_prob`
    is not finite, and the errors of `credit`.

    >>> import torch, gradest
    >>> logits = torch.zeros(3, requires_grad=True)
    >>> law = torch.distributions.Categorical(logits=logits)
    >>> actions = torch.tensor([0, 1, 2, 0])  # four samples, drawn by any program
    >>> loss = torch.tensor([1.0, 0.0, 2.0, 1.0])
    >>> value, state = gradest.score_surrogate(law.log_prob(actions), loss, "rloo")
    >>> value.backward()
    >>> logits.grad.shape
    torch.Size([3])
    """
    if torch.compiler.is_compiling():
        return _outside(score_surrogate, log_prob, loss, estimator, state, features, tokens=tokens)
    refuse_moved_state("gradest.score_surrogate", state)
    wide = _check_loss(loss)
    by_token = _check_log_prob(log_prob, wide, tokens)
    built = credited_estimator(estimator, wide.shape[0])
    if by_token and built.target() != Target():
        raise Incompatible(
            f"{built.name} estimates the gradient of {built.target()}, to which cost-to-go does not apply: it would be biased. "
            "Give it the loss of each whole sample, [K, *batch]"
        )
    to_go = wide.flip(-1).cumsum(-1).flip(-1) if by_token else wide
    weights, state = _credit(built, to_go, state, features)
    if weights.ndim < log_prob.ndim:
        weights = weights[..., None].expand(log_prob.shape)
    value = built.combine(wide.sum(-1) if by_token else wide)
    zero: Tensor = _WeightedScore.apply(log_prob, weights, wide, value.ndim)  # type: ignore[no-untyped-call]
    return value + zero, state


def _outside(function: Callable[..., tuple[Tensor, State]], *arguments: Any, **options: Any) -> tuple[Tensor, State]:
    from gradest.estimation.outside import outside  # noqa: PLC0415  # it imports the compiler

    result: tuple[Tensor, State] = outside(function, *arguments, **options)
    return result


def credited_estimator(estimator: EstimatorSpec, samples: int) -> ScoreFunction:
    """Return the score-function estimator with its option `samples` set to this number.

    Raises Incompatible if the estimator is no ScoreFunction, and InvalidInput if it cannot credit so many samples or was given
    another number of them.
    """
    built = registry.estimator(estimator)
    if not isinstance(built, ScoreFunction):
        names = ", ".join(name for name, cls in registry.estimators.items() if issubclass(cls, ScoreFunction))
        raise Incompatible(
            f"{built.label()} does not weight scores by a function of the losses alone, so it has no credit. "
            f"Estimators that have: {names}."
        )
    try:
        return built.of_samples(samples)
    except InvalidOptions as error:
        raise InvalidInput(
            f"{built.name} cannot credit K = {samples} sample(s), which is the first dim of the loss: {error} Draw more samples, "
            "or use an estimator that credits each by itself, such as reinforce_average"
        ) from error


def _credit(
    estimator: ScoreFunction, loss: Tensor, state: State | None, features: Tensor | None
) -> tuple[Tensor, State]:
    """Compute `credit` for a loss in at least float32, `[K, *batch]`."""
    readable = not transformed()
    with torch.no_grad():
        loss = loss.detach()
        if features is not None:
            features = _check_features(features, readable).to(torch.promote_types(features.dtype, loss.dtype))
        if readable:
            estimator.check_features(loss, features)
        first = estimator.credit_state(loss, features) if readable or state is None else {}
        if state is None:
            state = first
        elif readable:
            check_state(estimator, state, {name: list(x.shape) for name, x in first.items()})
        try:
            weights, after = estimator.credit(loss, state, features)
        except RuntimeError as error:
            if transformed():
                raise Incompatible(
                    f"{estimator.label()} does not run inside a transform of torch.func: {error}"
                ) from error
            raise
    if not isinstance(weights, Tensor) or weights.shape != loss.shape:
        got = list(weights.shape) if isinstance(weights, Tensor) else type(weights).__name__
        raise PluginFault(f"{estimator.name}.credit must return weights of shape {list(loss.shape)}, not {got}")
    if readable and first_non_finite(weights) is not None:
        raise InvalidInput(
            f"the weights of {estimator.label()} overflow, because the losses are too large; divide the losses"
        )
    return weights, after


def _check_loss(loss: Tensor) -> Tensor:
    """Return the loss in at least float32, with its graph. Raises InvalidInput unless it is `[K, *batch]`, floats and finite."""
    if not isinstance(loss, Tensor):
        raise InvalidInput(
            f"loss must be a torch tensor, [K, *batch], not {type(loss).__name__}; use torch.tensor(loss)"
        )
    if not loss.is_floating_point():
        raise InvalidInput(f"loss must be floating point, not {loss.dtype}; use loss.float()")
    if loss.ndim == 0 or loss.shape[0] == 0:
        raise InvalidInput(
            "loss must be [K, *batch], the losses of K samples for each element of the batch, K at least 1, not "
            f"{list(loss.shape)}"
        )
    _check_finite("loss", loss, not transformed())
    return loss.to(at_least_float32(loss))


def _check_features(features: Tensor, readable: bool) -> Tensor:
    if not isinstance(features, Tensor):
        raise InvalidInput(
            f"features must be a torch tensor, not {type(features).__name__}; use torch.tensor(features)"
        )
    if features.is_complex():
        raise InvalidInput(f"features must be real numbers, not {features.dtype}")
    features = features.detach()
    _check_finite("features", features, readable and features.is_floating_point())
    return features


def _check_finite(name: str, x: Tensor, readable: bool) -> None:
    index = first_non_finite(x.detach()) if readable else None
    if index is not None:
        raise InvalidInput(
            f"{name} must be finite, but {name}[{', '.join(map(str, index))}] is {x.detach()[tuple(index)]}"
        )


def _check_log_prob(log_prob: Tensor, loss: Tensor, tokens: bool | None) -> bool:
    """Return whether the loss is one of tokens.

    Raises InvalidInput unless `log_prob` has the shape of the loss, or one dim more.
    """
    if not isinstance(log_prob, Tensor) or not log_prob.is_floating_point():
        found = log_prob.dtype if isinstance(log_prob, Tensor) else type(log_prob).__name__
        raise InvalidInput(f"log_prob must be a tensor of floating-point log-probabilities, not {found}")
    index = None if transformed() else first_non_finite(log_prob.detach())
    if index is not None:
        raise InvalidInput(
            f"log_prob must be finite, but log_prob[{', '.join(map(str, index))}] is {log_prob.detach()[tuple(index)]}. A token "
            "that was drawn has no probability of 0: compare the masks of the two passes, and whether the logits are shifted by "
            "one. If it is padding, use log_prob.masked_fill(padding, 0), since 0 times infinity is nan"
        )
    same = log_prob.shape == loss.shape
    by_token = same and (loss.ndim >= 3 if tokens is None else tokens)
    if by_token and loss.ndim >= 2:
        return True
    if (same and not tokens) or (log_prob.shape[:-1] == loss.shape and tokens in (None, True)):
        return False
    wanted = {
        None: "the shape of the loss, [K, *batch], or one dim of tokens more",
        True: "one dim of tokens more than the loss, or [K, *batch, T] as the loss of each token has",
        False: "the shape of the loss, [K, *batch]",
    }[tokens]
    raise InvalidInput(f"log_prob must have {wanted}; it has {list(log_prob.shape)}, and the loss {list(loss.shape)}")


class _WeightedScore(torch.autograd.Function):
    """The number 0 for each element of the batch, whose gradient in the log-probabilities is the weights.

    The loss, of which the weights are a function, is an argument only so that a second derivative in it is noticed too.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(log_prob: Tensor, weights: Tensor, loss: Tensor, batch_dims: int) -> Tensor:
        return loss.new_zeros(loss.shape[1 : 1 + batch_dims])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, int], output: Tensor) -> None:
        *tensors, ctx.batch_dims = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        log_prob, weights, loss = ctx.saved_tensors
        spread = gradient[(..., *[None] * (log_prob.ndim - 1 - ctx.batch_dims))]
        told = (spread * weights).to(log_prob.dtype)
        return DifferentiateOnce.apply(told, log_prob, loss), None, None, None  # type: ignore[no-untyped-call]
