"""One model on several devices: computed by several ranks together, or layer by layer."""
