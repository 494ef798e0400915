"""The results of nnU-Net's validations: collected, measured, compared."""
