"""The contracts that authors of plugins program against.

It must not know who implements the contracts.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "criterion": ["Criterion", "NetworkCriterion", "Observation", "Scene"],
        "schedule": ["Budget", "Grow", "MaskUpdate", "Plan", "PlanRequest", "Schedule", "Stage", "Start"],
        "task": ["Task"],
        "training": ["Training"],
        "evaluation": ["Evaluation"],
        "options": ["option"],
        "seeds": ["Seeds"],
        "markers": ["hookimpl"],
    },
)
