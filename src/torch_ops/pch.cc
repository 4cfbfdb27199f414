// Nothing of its own: the object that the precompiled <torch/torch.h> belongs to.
