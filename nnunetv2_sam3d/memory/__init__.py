"""Memory of a training step: counted on tensors without content, fitted to measurements, used to plan."""
