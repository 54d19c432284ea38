"""What a denoiser's raw output may be: the four predictions. Standard library only.

With x_t the noisy state, x_0 the picture, eps the noise and t in [0, 1] the noise level: "flow" is eps - x_0, "epsilon"
is eps, "sample" is x_0, and "v" is the velocity of variance-preserving models (docs/theory.md, M9).
"""

from typing import Literal, get_args

Prediction = Literal["flow", "epsilon", "v", "sample"]
PREDICTIONS: tuple[Prediction, ...] = get_args(Prediction)
