"""The Lightning side: module, strategy, callbacks, checkpoints. Sees no config object, only explicit arguments."""
