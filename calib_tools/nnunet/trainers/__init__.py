"""The folder that nnU-Net looks for trainers in; it imports each file here by itself."""
