"""One file per family; importing this package registers every model with timm."""
