# CUDA sources, compiled by the nvcc that scripts/setup unpacked on any machine,
# with a GPU or without. CMake's own CUDA language is not used: it wants a whole
# toolkit.
option(QLORA_CUDA "Compile the CUDA backend" ON)
if(QLORA_CUDA)
  set(QLORA_CUDA_ROOT "${QLORA_DEPS_DIR}/cuda/nvidia/cu13")
  if(NOT EXISTS "${QLORA_CUDA_ROOT}/bin/nvcc")
    message(FATAL_ERROR "nvcc is not in ${QLORA_CUDA_ROOT}: run scripts/setup first, or build with -DQLORA_CUDA=OFF")
  endif()
  add_library(qlora_cudart INTERFACE)
  add_library(qlora::cudart ALIAS qlora_cudart)
  target_include_directories(qlora_cudart SYSTEM INTERFACE "${QLORA_CUDA_ROOT}/include")
  # It loads libcuda.so.1 when first called: programs start without a driver.
  target_link_libraries(qlora_cudart INTERFACE "${QLORA_CUDA_ROOT}/lib/libcudart.so.13")
  target_link_options(qlora_cudart INTERFACE "-Wl,-rpath,${QLORA_CUDA_ROOT}/lib")
endif()
# Ampere, Ada, Hopper, Blackwell; later ones translate the last PTX.
set(QLORA_CUDA_CODE
  "-gencode=arch=compute_80,code=[sm_80,sm_86,sm_89]"
  "-gencode=arch=compute_90a,code=sm_90a"
  "-gencode=arch=compute_100,code=[sm_100,compute_100]")

# Adds .cu sources to a target. What ptxas says of each kernel's registers and
# spills is then in NAME.cu.ptxas in the build's directory.
function(qlora_cuda_sources target)
  foreach(source ${ARGN})
    get_filename_component(name "${source}" NAME)
    set(object "${CMAKE_CURRENT_BINARY_DIR}/${name}.o")
    add_custom_command(
      OUTPUT "${object}"
      BYPRODUCTS "${object}.d" "${CMAKE_CURRENT_BINARY_DIR}/${name}.ptxas"
      COMMAND "${CMAKE_SOURCE_DIR}/cmake/nvcc"
        "${CMAKE_CURRENT_BINARY_DIR}/${name}.ptxas"
        "${QLORA_CUDA_ROOT}/bin/nvcc" -ccbin "${CMAKE_CXX_COMPILER}"
        -std=c++20 -O3 --expt-relaxed-constexpr ${QLORA_CUDA_CODE}
        -Werror all-warnings -diag-suppress 611
        -Xcompiler -fPIC,-Wall,-Wextra -Xptxas -v
        -I "${CMAKE_SOURCE_DIR}" -MD -MF "${object}.d" -MT "${object}"
        -c "${CMAKE_CURRENT_SOURCE_DIR}/${source}" -o "${object}"
      DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/${source}"
        "${CMAKE_SOURCE_DIR}/cmake/nvcc"
      DEPFILE "${object}.d"
      COMMENT "Building CUDA object ${name}.o"
      COMMAND_EXPAND_LISTS VERBATIM)
    target_sources(${target} PRIVATE "${object}")
  endforeach()
endfunction()
