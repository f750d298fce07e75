# LibTorch out of the PyPI wheel that scripts/setup unpacked: CPU libraries only.
# find_package(Torch) is not used: it wants a CUDA toolkit and breaks Protobuf.
set(QLORA_TORCH_ROOT "${QLORA_DEPS_DIR}/libtorch/torch")
if(NOT EXISTS "${QLORA_TORCH_ROOT}/lib/libtorch_cpu.so")
  message(FATAL_ERROR "LibTorch is not in ${QLORA_TORCH_ROOT}: run scripts/setup first")
endif()
file(STRINGS "${QLORA_TORCH_ROOT}/version.py" QLORA_TORCH_VERSION
     REGEX "^__version__ = ")
string(REGEX REPLACE ".*'([0-9.]+).*" "\\1" QLORA_TORCH_VERSION
       "${QLORA_TORCH_VERSION}")
set(QLORA_TORCH_RPATH
  "${QLORA_TORCH_ROOT}/lib"
  "${QLORA_DEPS_DIR}/libtorch/nvidia/cu13/lib")
add_library(qlora_torch INTERFACE)
add_library(qlora::torch ALIAS qlora_torch)
# After the system's: torch/include carries copies of other libraries' headers.
target_compile_options(qlora_torch INTERFACE
  "SHELL:-idirafter ${QLORA_TORCH_ROOT}/include"
  "SHELL:-idirafter ${QLORA_TORCH_ROOT}/include/torch/csrc/api/include")
target_link_libraries(qlora_torch INTERFACE
  "${QLORA_TORCH_ROOT}/lib/libtorch_cpu.so"
  "${QLORA_TORCH_ROOT}/lib/libc10.so")
target_link_options(qlora_torch INTERFACE
  "-Wl,-rpath,${QLORA_TORCH_ROOT}/lib"
  "-Wl,-rpath-link,${QLORA_TORCH_ROOT}/lib:${QLORA_DEPS_DIR}/libtorch/nvidia/cu13/lib"
  "-Wl,--allow-shlib-undefined")
