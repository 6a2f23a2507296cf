"""One stage of a run: its plan, training, mask updates and evaluation.

It must not know the other stages.
"""
