"""What compiled code calls outside its graph. Importing this module imports torch's compiler, so only compiled code does."""

from gradest.estimation.outside import call_outside

__all__ = ["begin_state", "conditional_forward", "expectation_forward", "stochastic_forward"]

begin_state = call_outside(
    "the shapes of this estimator's state follow from its input: give the layer the shape of one event, as in event=(200,), or "
    "call the model once before it is compiled, under torch.no_grad() if you like"
)
conditional_forward = call_outside(
    "a ConditionalLinear layer with gates breaks the graph, because its work depends on them"
)
expectation_forward = call_outside(
    "an Expectation layer breaks the graph; where it must be whole use gradest.nn.Stochastic"
)
stochastic_forward = call_outside("a gradest.nn.Stochastic layer is part of a whole graph from torch 2.13 on")
