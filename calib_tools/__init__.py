"""What people run: preparation of data, saved predictions, reports, nnU-Net, many cases.

Needs the extra `bundles`.
"""
