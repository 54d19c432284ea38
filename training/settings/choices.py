"""The names that may be chosen for a setting. What each name means is explained beside the code behind it.

Kind, Baseline, StepLaw                             training/learn/objective.py
Method            training/data/optimality.py
Schedule          training/learn/old_model.py       Precision   training/devices/precision.py
Quantise, Optimizer                                 training/devices/quantised.py
Mix               training/data/optimality.py
"""

from __future__ import annotations

from typing import Literal, get_args

Kind = Literal["positive", "policy", "paper"]
Baseline = Literal["half", "mean", "alpha"]
StepLaw = Literal["nft", "odds"]
Method = Literal["raw", "likes", "threshold", "sigmoid", "rank", "group", "top", "exponential"]
Mix = Literal["mean", "product"]
Schedule = Literal["copy", "ramp", "late_ramp"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Quantise = Literal["none", "nf4", "int8"]
Optimizer = Literal["adamw", "adamw8bit"]

KINDS: tuple[Kind, ...] = get_args(Kind)
BASELINES: tuple[Baseline, ...] = get_args(Baseline)
STEP_LAWS: tuple[StepLaw, ...] = get_args(StepLaw)
METHODS: tuple[Method, ...] = get_args(Method)
MIXES: tuple[Mix, ...] = get_args(Mix)
SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
QUANTISE: tuple[Quantise, ...] = get_args(Quantise)
OPTIMIZERS: tuple[Optimizer, ...] = get_args(Optimizer)
