"""The size of a step: clipping, norms, Adafactor's relative step and parameter scale."""
