# Language level, warnings, sanitizers, ccache. Modules link qlora_compiler.
set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_CXX_FLAGS_DEV "-O2 -g1")
set(CMAKE_C_FLAGS_DEV "-O2 -g1")
set(CMAKE_CXX_FLAGS_RELEASE "-O2 -DNDEBUG")

find_program(QLORA_CCACHE ccache)
if(QLORA_CCACHE)
  set(CMAKE_CXX_COMPILER_LAUNCHER "${QLORA_CCACHE}")
endif()

add_library(qlora_compiler INTERFACE)
target_include_directories(qlora_compiler INTERFACE "${CMAKE_SOURCE_DIR}")
target_compile_options(qlora_compiler INTERFACE
  -Wall -Wextra -Wnon-virtual-dtor -Werror -fno-omit-frame-pointer)
if(CMAKE_CXX_COMPILER_ID STREQUAL "Clang")
  target_compile_options(qlora_compiler INTERFACE -Wthread-safety)
endif()
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  # False alarms of gcc 12 in the standard library at -O2.
  target_compile_options(qlora_compiler INTERFACE
    -Wno-restrict -Wno-stringop-overflow -Wno-array-bounds -Wno-maybe-uninitialized)
endif()
if(QLORA_SANITIZER STREQUAL "address")
  target_compile_options(qlora_compiler INTERFACE
    -fsanitize=address,undefined -fno-sanitize-recover=undefined -D_GLIBCXX_ASSERTIONS)
  target_link_options(qlora_compiler INTERFACE -fsanitize=address,undefined)
elseif(QLORA_SANITIZER STREQUAL "thread")
  # Debian's Protobuf is not built with -fsanitize=thread, and its headers lay a
  # map field out differently where they see that macro. libstdc++ is told apart.
  target_compile_options(qlora_compiler INTERFACE
    -fsanitize=thread -U__SANITIZE_THREAD__ -D_GLIBCXX_TSAN=1 -D_GLIBCXX_ASSERTIONS)
  target_link_options(qlora_compiler INTERFACE -fsanitize=thread)
elseif(QLORA_SANITIZER)
  message(FATAL_ERROR "QLORA_SANITIZER is '${QLORA_SANITIZER}': address, thread or empty")
endif()

# A module: library `qlora_<name>` with alias qlora::<name>.
#   qlora_library(name SOURCES a.cc b.h DEPS qlora::base absl::status)
function(qlora_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS;PRIVATE_DEPS" ${ARGN})
  add_library(qlora_${name} STATIC ${ARG_SOURCES})
  add_library(qlora::${name} ALIAS qlora_${name})
  target_link_libraries(qlora_${name}
    PUBLIC qlora_compiler ${ARG_DEPS}
    PRIVATE ${ARG_PRIVATE_DEPS})
endfunction()
