// The scenes for newcomers. A scene has a state of its view, and steps. Each has what it changes of that state, the
// element that it speaks of, the column if that is a table, and what it says. Tests check each claim and each figure.

const CHART = (at) => `.grid.wide figure:nth-child(${at})`;
const CARD = (at) => `.clouds .card:nth-child(${at})`;

export const SCENES = [
  {
    name: "unit",
    title: "A unit",
    view: "playground",
    state: { neuron: "bernoulli", objective: { name: "quadratic", target: 0.3 }, a: [0.5], estimators: ["reinforce"] },
    steps: [
      {
        shows: ".sliders",
        text:
          "A stochastic unit has one input, its pre-activation a. Training changes a; here it is 0.5. Move " +
          "it at any time.",
      },
      {
        shows: ".grid figure:nth-child(1)",
        text:
          "The output h is drawn at random: 0 or 1. It is 1 with probability σ(a) = 0.6225, and nearly that " +
          "share of these 4,000 samples are 1.",
      },
      {
        state: { a: [2] },
        shows: ".grid figure:nth-child(2)",
        text:
          "With a = 2 the unit is 1 more often: the mean E[h] is 0.8808. Each output jumps between 0 and 1, " +
          "but the mean is a smooth curve of a.",
      },
      {
        shows: ".loss",
        text:
          "The loss is (h - 0.3)²: 0.09 for h = 0, and 0.49 for h = 1. A single output stays the same if a " +
          "moves a little, so backpropagation sees no slope. The mean loss has one: the exact gradient, " +
          "0.094.",
      },
      {
        state: { seed: 1 },
        shows: ".controls > .row",
        text:
          "All noise follows from a seed, and the same seed gives the same picture. This step took the next " +
          "one, as the button does: the sampled mean has changed, the exact one has not.",
      },
    ],
  },
  {
    name: "estimator",
    title: "An estimator",
    view: "playground",
    state: { neuron: "bernoulli", objective: { name: "quadratic", target: 0.3 }, a: [0.5, -1] },
    steps: [
      {
        state: { estimators: ["reinforce"] },
        shows: CARD(1),
        text:
          "An estimator makes a gradient out of samples. Each dot is a draw of reinforce, which uses the " +
          "value of the loss alone; larger dots came up more often. The red cross is the exact gradient.",
      },
      {
        state: { estimators: ["reinforce"] },
        shows: `${CARD(1)} .figures`,
        text:
          "No single draw hits the cross, but their mean comes near: the bias is within two standard errors " +
          "of 0, so none is seen. The variance, 0.0209, says how far single draws scatter.",
      },
      {
        state: { estimators: ["reinforce", "rloo"] },
        shows: CARD(2),
        text:
          "rloo takes two samples, and subtracts from each loss the other one. Its variance is 0.00418, a " +
          "fifth. That pays, though a draw costs two evaluations: the efficiency is 120, not 47.9.",
      },
      {
        state: { estimators: ["reinforce", "rloo", "straight_through"] },
        shows: CARD(3),
        text:
          "straight_through passes the derivative of the loss on, as if h moved with a. The bars at its mean " +
          "are far from the red cross: a bias of 0.25, ten standard errors. More draws would not help.",
      },
      {
        state: { estimators: ["reinforce", "rloo", "straight_through"] },
        shows: ".estimators",
        text:
          "Choose estimators here: the list has those that fit the neuron. One that is ticked shows its " +
          "options.",
      },
    ],
  },
  {
    name: "comparison",
    title: "A comparison",
    view: "compare",
    state: {
      neuron: "bernoulli",
      objective: { name: "quadratic", target: 0.3 },
      a: [0.5, -1, 2],
      draws: 2000,
      seed: 0,
      sort: ["variance", 1],
      estimators: ["reinforce", "rloo", "disarm", "straight_through"],
    },
    steps: [
      {
        shows: ".draws",
        text:
          "The playground shows single draws; a comparison measures them. Here it makes 2000 draws of each " +
          "of four estimators.",
      },
      {
        shows: ".pictures > .scroll",
        column: "bias_in_se",
        text:
          "Each row is an estimator. bias/SE is its bias in standard errors: below 3 for three of them, so " +
          "none is seen. For straight_through it is above 30, so its bias is real.",
      },
      {
        shows: CHART(1),
        text:
          "Further left is less noise, and further down is nearer to the exact gradient. straight_through is " +
          "at the top: its mean has the largest error.",
      },
      {
        shows: CHART(2),
        text:
          "What do more evaluations of the loss buy? The curves of the unbiased estimators fall on. That of " +
          "straight_through goes flat, because its bias stays.",
      },
      {
        shows: CHART(3),
        text:
          "Noise depends on the unit: here one pre-activation goes from -6 to 6, and p, the probability of a " +
          "1, with it. rloo and disarm stay below reinforce all the way.",
      },
      {
        shows: ".pictures > .row",
        text:
          "Take it along as JSON or CSV, or as a link that runs the same comparison. Below is Python code " +
          "for the same numbers.",
      },
    ],
  },
];
