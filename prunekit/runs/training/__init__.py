"""Training steps: batches, hardware, optimisers, and the loop.

It must not know stages, masks or checkpoints.
"""
