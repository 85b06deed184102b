"""Training and export of the models; needs the `train` extra. The runtime never imports it."""
