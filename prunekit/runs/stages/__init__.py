"""One stage of a run: what is planned for it, its training, its mask updates and its evaluation.

It must not know the other stages.
"""
