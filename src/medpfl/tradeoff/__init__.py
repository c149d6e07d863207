"""The trade-off between privacy and accuracy: how much each defense still leaks, and how much accuracy it costs."""
