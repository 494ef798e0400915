"""The trainers that nnU-Net finds by name, in ``variants``; their names and recipes load without it."""
