"""Figures of trained models beside nnU-Net's own: measures, and test protocols with clicks."""
