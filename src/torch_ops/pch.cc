// Nothing of its own: the object that PyTorch's precompiled headers belong to
// (cmake/MegafoldTorch.cmake).
