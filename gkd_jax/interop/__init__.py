"""Networks from other frameworks: `torch`."""
