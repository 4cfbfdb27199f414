# install(): headers, libraries, the CMake package (find_package(megafold), target megafold::ops), the program.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

install(DIRECTORY "${CMAKE_SOURCE_DIR}/include/megafold" DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}" COMPONENT development)
# Libraries that scripts/setup.py unpacked instead of installing them are found where they lie.
file(GLOB megafold_unpacked_libraries "${MEGAFOLD_DEPS_PREFIX}/usr/lib/*-linux-gnu")
set_target_properties(megafold PROPERTIES EXPORT_NAME ops SOVERSION ${PROJECT_VERSION_MAJOR}
                      INSTALL_RPATH "${megafold_unpacked_libraries}")
install(TARGETS megafold EXPORT megafold-targets LIBRARY DESTINATION "${CMAKE_INSTALL_LIBDIR}" COMPONENT development)
install(EXPORT megafold-targets NAMESPACE megafold:: COMPONENT development
        DESTINATION "${CMAKE_INSTALL_LIBDIR}/cmake/megafold")
configure_package_config_file("${CMAKE_SOURCE_DIR}/cmake/megafold-config.cmake.in"
  "${CMAKE_BINARY_DIR}/megafold-config.cmake" INSTALL_DESTINATION "${CMAKE_INSTALL_LIBDIR}/cmake/megafold")
write_basic_package_version_file("${CMAKE_BINARY_DIR}/megafold-config-version.cmake" COMPATIBILITY SameMinorVersion)
install(FILES "${CMAKE_BINARY_DIR}/megafold-config.cmake" "${CMAKE_BINARY_DIR}/megafold-config-version.cmake"
        COMPONENT development DESTINATION "${CMAKE_INSTALL_LIBDIR}/cmake/megafold")

# The program, its libraries beside it; PyTorch's stay where they were found.
if(TARGET megafold_program)
  set_target_properties(megafold_program PROPERTIES INSTALL_RPATH
    "$ORIGIN/../${CMAKE_INSTALL_LIBDIR};${MEGAFOLD_TORCH_DIR}/lib;${megafold_unpacked_libraries}")
  install(TARGETS megafold_program RUNTIME DESTINATION "${CMAKE_INSTALL_BINDIR}" COMPONENT program)
  install(TARGETS megafold megafold_torch LIBRARY DESTINATION "${CMAKE_INSTALL_LIBDIR}" COMPONENT program NAMELINK_SKIP)
endif()

# Tuned tables, where src/tuning/load.cc looks for them.
install(DIRECTORY "${CMAKE_SOURCE_DIR}/tuning/" DESTINATION "${CMAKE_INSTALL_DATADIR}/megafold/tuning" COMPONENT program
        FILES_MATCHING PATTERN "*.json")

# The Python package's libraries, beside its sources: what `pip install .` takes (pyproject.toml).
if(TARGET megafold_torch)
  install(TARGETS megafold megafold_torch LIBRARY DESTINATION . COMPONENT python EXCLUDE_FROM_ALL NAMELINK_SKIP)
  install(DIRECTORY "${CMAKE_SOURCE_DIR}/tuning/" DESTINATION tuning COMPONENT python EXCLUDE_FROM_ALL
          FILES_MATCHING PATTERN "*.json")
endif()
