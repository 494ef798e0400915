"""What nnU-Net has on disk and calls things: names, labels, images, splits, trained folds."""
