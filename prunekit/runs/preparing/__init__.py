"""The four steps of a preparation: choose plugins, look at the network, read given files, plan the stages.

They must not know how a plan is carried out.
"""
