"""Training and export of the FaSDiff-Edge models. Needs the `train` extra; the runtime never imports it."""
