"""The training loop: batches, hardware, optimizers, steps.

It must not know stages, masks or checkpoints.
"""
