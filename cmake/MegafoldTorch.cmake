# megafold_libtorch: the libtorch inside the installed PyTorch (CPU, CUDA or ROCm build alike).
#
# PyTorch's own TorchConfig.cmake wants a CUDA toolkit as soon as PyTorch was built with CUDA; these sources never include
# a CUDA header, so only the libraries are named here.
find_package(Python3 3.10 REQUIRED COMPONENTS Interpreter)
execute_process(
  COMMAND "${Python3_EXECUTABLE}" -c
    "import torch, os; print(os.path.dirname(torch.__file__)); print(torch.__version__); print(int(torch.compiled_with_cxx11_abi()))"
  OUTPUT_VARIABLE torch_facts OUTPUT_STRIP_TRAILING_WHITESPACE RESULT_VARIABLE torch_status)
if(NOT torch_status EQUAL 0)
  message(FATAL_ERROR "PyTorch is not importable from ${Python3_EXECUTABLE}; install torch>=2.11 there, "
                      "pass -DPython3_EXECUTABLE=..., or build the kernels alone with -DMEGAFOLD_BUILD_TORCH=OFF")
endif()
string(REPLACE "\n" ";" torch_facts "${torch_facts}")
list(GET torch_facts 0 MEGAFOLD_TORCH_DIR)
list(GET torch_facts 1 MEGAFOLD_TORCH_VERSION)
list(GET torch_facts 2 torch_cxx11_abi)
if(MEGAFOLD_TORCH_VERSION VERSION_LESS 2.11)
  message(FATAL_ERROR "PyTorch ${MEGAFOLD_TORCH_VERSION} is too old: megafold needs 2.11 or newer")
endif()
message(STATUS "megafold: PyTorch ${MEGAFOLD_TORCH_VERSION} in ${MEGAFOLD_TORCH_DIR}")

add_library(megafold_libtorch INTERFACE)
target_include_directories(megafold_libtorch SYSTEM INTERFACE
  "${MEGAFOLD_TORCH_DIR}/include" "${MEGAFOLD_TORCH_DIR}/include/torch/csrc/api/include")
target_compile_definitions(megafold_libtorch INTERFACE _GLIBCXX_USE_CXX11_ABI=${torch_cxx11_abi})
foreach(library torch_cpu c10)
  target_link_libraries(megafold_libtorch INTERFACE "${MEGAFOLD_TORCH_DIR}/lib/lib${library}.so")
endforeach()
# The device libraries register themselves when loaded; nothing here names a symbol of theirs.
foreach(library torch_cuda c10_cuda torch_hip c10_hip)
  if(EXISTS "${MEGAFOLD_TORCH_DIR}/lib/lib${library}.so")
    target_link_libraries(megafold_libtorch INTERFACE
      "-Wl,--push-state,--no-as-needed,${MEGAFOLD_TORCH_DIR}/lib/lib${library}.so,--pop-state")
  endif()
endforeach()

if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  target_compile_options(megafold_libtorch INTERFACE -fpch-preprocess)  # lets ccache see precompiled headers
  # GCC 13 believes that the std::vector<bool> of torch's autograd functions writes past its end once all is inlined.
  target_compile_options(megafold_libtorch INTERFACE -Wno-array-bounds -Wno-stringop-overflow)
endif()

# PyTorch's headers take most of a file's compile time: targets that read them say
# target_precompile_headers(x REUSE_FROM megafold_torch_pch) and link megafold_libtorch and megafold_options.
# Only what most files need: GCC instantiates the templates that a precompiled header left pending anew in each file, 3 s
# a file for <torch/torch.h>. A target must not add an -include of its own: GCC then leaves the precompiled header unread.
add_library(megafold_torch_pch OBJECT "${CMAKE_SOURCE_DIR}/src/torch_ops/pch.cc")
target_link_libraries(megafold_torch_pch PRIVATE megafold_options megafold_libtorch)
target_precompile_headers(megafold_torch_pch PRIVATE
  <ATen/ATen.h> <torch/nn/module.h> <torch/nn/modules/container/modulelist.h> <torch/nn/pimpl.h>)

# The same for a program: what it compiles must be position-independent like the header was, not merely -fPIE.
function(megafold_reuse_torch_pch target)
  target_precompile_headers(${target} REUSE_FROM megafold_torch_pch)
  target_compile_options(${target} PRIVATE -fPIC)
endfunction()
