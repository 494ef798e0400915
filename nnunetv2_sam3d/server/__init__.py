"""A trained model behind interactive viewers: 3D Slicer, napari, a browser."""
