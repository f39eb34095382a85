"""What people run: preparation of data, comparisons of losses, saved predictions, nnU-Net, many
cases.

Needs the extra `bundles`.
"""
