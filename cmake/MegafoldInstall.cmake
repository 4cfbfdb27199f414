# install(): headers, libraries, the CMake package (find_package(megafold), target megafold::ops), the program.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)
