"""The step that ties networks, losses and data together, and the loop around it."""
