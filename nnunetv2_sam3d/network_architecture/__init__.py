"""The network: SAM's ViT encoder lifted to 3D, prompt encoder, mask decoder."""
