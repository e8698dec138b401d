"""EG3D (arXiv 2112.07945): a 3D face generator, rendered from any camera.

A StyleGAN2 backbone makes three planes of features from a code, a renderer looks
through them along a camera's rays, and two StyleGAN2 blocks enlarge what it sees.
"""
